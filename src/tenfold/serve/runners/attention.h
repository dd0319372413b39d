// Attention of rows over keys and values in the cache's blocks, with an online softmax over a few blocks at a time (arXiv
// 1805.02867). A row's result is summed in the order of the positions, whatever other rows are computed with it.

#pragma once
#include "tiles.h"

namespace {

inline vec exponential(vec x) {  // exp(x) for x <= 0: 2^n e^f with |f| <= ln 2 / 2, Taylor to f^7
    x = x < -87.0f ? vec{} - 87.0f : x;
    vec shifted = x * 1.44269504f + 12582912.0f;
    ints n = (ints)shifted - (ints)(shifted - shifted + 12582912.0f);
    vec whole = shifted - 12582912.0f;
    vec f = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    vec sum = f * 1.98412698e-4f + 1.38888889e-3f;
    sum = sum * f + 8.33333333e-3f;
    sum = sum * f + 4.16666667e-2f;
    sum = sum * f + 1.66666667e-1f;
    sum = sum * f + 0.5f;
    sum = sum * f + 1.0f;
    sum = sum * f + 1.0f;
    return (vec)((ints)sum + (n << 23));
}

inline float largest(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
#endif
}

inline float total(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

// Neighbouring rows of one sequence at successive positions, whose attention is computed together.
struct Run {
    int first, count;
};

// The runs among the rows from `begin` to before `end`, of at most `most` rows each.
std::vector<Run> runs_of(int begin, int end, int most, const int32_t* positions, const int32_t* starts) {
    std::vector<Run> runs;
    for (int r = begin; r < end; r++) {
        bool goes_on = r > begin && starts[r] == starts[r - 1] && positions[r] == positions[r - 1] + 1;
        if (goes_on && runs.back().count < most) runs.back().count++;
        else runs.push_back({r, 1});
    }
    return runs;
}

constexpr int SPAN = 4;          // blocks for each update of the softmax
constexpr int MOST_HEAD = 256;   // largest head_dim
constexpr int MOST_TOGETHER = 64;  // rows of a prompt in one run

// The cached keys and values of one sequence for one layer and key-value head `kv`. `keys` [blocks][kv_heads][head_dim][block] and
// `values` [blocks][kv_heads][block][head_dim] are those of the layer; `table` lists the sequence's blocks.
struct Cached {
    const float *keys, *values;
    const int32_t* table;
    int kv_heads, kv, head_dim, block;

    // Where the block `b` of the sequence begins.
    size_t at(int b) const { return ((size_t)table[b] * kv_heads + kv) * head_dim * block; }
};

// A row's online softmax: its largest score so far, and the sum of its weights, lane by lane.
struct Softmax {
    float most = -INFINITY;
    vec sum = {};

    // Replaces `width` further scores, of which the row attends to the first `seen`, by their weights. Returns the factor by which
    // earlier weights, and sums with them, must be multiplied.
    float add(float* scores, int width, int seen, float scale) {
        for (int t = seen > 0 ? seen : 0; t < width; t++) scores[t] = -INFINITY;
        vec high = load(scores);
        for (int t = LANES; t < width; t += LANES) {
            vec score = load(scores + t);
            high = score > high ? score : high;
        }
        const float top = std::fmax(most, largest(high) * scale), fade = top == most ? 1.0f : std::exp(most - top);
        most = top;
        sum *= fade;
        for (int t = 0; t < width; t += LANES) {
            vec score = load(scores + t), weight = score == -INFINITY ? vec{} : exponential(score * scale - top);
            sum += weight;
            store(scores + t, weight);
        }
        return fade;
    }
};

// sum[c][j][lanes] += sum over i < count of a[j * STRIDE + i] * b[c][i][lanes], for ROWS rows j and COLUMNS columns c of lanes.
template <int ROWS, int STRIDE, int COLUMNS>
inline void add_outer(const float* a, const float* const (&b)[COLUMNS], int b_stride, int count, vec (&sum)[COLUMNS][ROWS]) {
    for (int i = 0; i < count; i++) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            vec other = load(b[c] + (size_t)i * b_stride);
#pragma GCC unroll 16
            for (int j = 0; j < ROWS; j++) sum[c][j] += a[j * STRIDE + i] * other;
        }
    }
}

// Calls `work` for `count` columns: for COLUMNS at a time, and for the rest one by one.
template <int COLUMNS, class Work>
inline void in_columns(int count, Work work) {
    int c = 0;
    for (; c + COLUMNS <= count; c += COLUMNS) work(c, std::integral_constant<int, COLUMNS>());
    if constexpr (COLUMNS > 1)
        for (; c < count; c++) work(c, std::integral_constant<int, 1>());
}

// Attention of ROWS queries q [ROWS, q_stride] of one key-value head, into out [ROWS, out_stride]. Query j is at position + j *
// advance and attends up to its own position. The queries are one head of neighbouring rows (advance 1), or neighbouring heads of
// one row (advance 0).
template <int ROWS>
void attend(const Cached& c, int position, int advance, const float* q, int q_stride, float* out, int out_stride) {
    constexpr int COLUMNS = ROWS <= 4 ? 4 : 1;  // enough independent sums to hide the latency of the additions
    const int D = c.head_dim, B = c.block, all = (position + advance * (ROWS - 1)) / B + 1;
    const float scale = 1.0f / std::sqrt((float)D);
    float scaled[ROWS][MOST_HEAD], weights[ROWS][SPAN * PANEL], fade[ROWS];
    Softmax softmax[ROWS];
    for (int j = 0; j < ROWS; j++)
        for (int i = 0; i < D; i += LANES) {
            store(scaled[j] + i, load(q + (size_t)j * q_stride + i) * scale);
            store(out + (size_t)j * out_stride + i, vec{});
        }
    for (int first = 0; first < all; first += SPAN) {
        const int blocks = all - first < SPAN ? all - first : SPAN;
        in_columns<COLUMNS>(blocks * B / LANES, [&](int begin, auto columns) {
            const float* keys[columns];
            vec sum[columns][ROWS] = {};
            for (int n = 0; n < columns; n++) {
                const int t = (begin + n) * LANES;
                keys[n] = c.keys + c.at(first + t / B) + t % B;
            }
            add_outer<ROWS, MOST_HEAD>(scaled[0], keys, B, D, sum);
            for (int n = 0; n < columns; n++)
                for (int j = 0; j < ROWS; j++) store(weights[j] + (begin + n) * LANES, sum[n][j]);
        });
        const int seen = position + 1 - first * B;  // how many of these blocks' positions row 0 attends to
        for (int j = 0; j < ROWS; j++) fade[j] = softmax[j].add(weights[j], blocks * B, seen + advance * j, 1.0f);
        in_columns<COLUMNS>(D / LANES, [&](int begin, auto columns) {
            float* to = out + begin * LANES;
            vec mix[columns][ROWS];
            for (int n = 0; n < columns; n++)
                for (int j = 0; j < ROWS; j++) mix[n][j] = load(to + (size_t)j * out_stride + n * LANES) * fade[j];
            for (int b = 0; b < blocks; b++) {
                const float* values[columns];
                for (int n = 0; n < columns; n++) values[n] = c.values + c.at(first + b) + (begin + n) * LANES;
                if (seen >= (b + 1) * B) {
                    add_outer<ROWS, SPAN * PANEL>(weights[0] + b * B, values, D, B, mix);
                    continue;
                }
                for (int j = 0; j < ROWS; j++) {  // positions that a row does not attend to may hold anything, even NaN
                    const int own = seen + advance * j - b * B;
                    vec sum[columns][1];
                    for (int n = 0; n < columns; n++) sum[n][0] = mix[n][j];
                    add_outer<1, 0>(weights[j] + b * B, values, D, own < 0 ? 0 : own < B ? own : B, sum);
                    for (int n = 0; n < columns; n++) mix[n][j] = sum[n][0];
                }
            }
            for (int n = 0; n < columns; n++)
                for (int j = 0; j < ROWS; j++) store(to + (size_t)j * out_stride + n * LANES, mix[n][j]);
        });
    }
    for (int j = 0; j < ROWS; j++) {
        const float all_weights = total(softmax[j].sum);
        for (int i = 0; i < D; i += LANES) {
            float* to = out + (size_t)j * out_stride + i;
            store(to, load(to) / all_weights);
        }
    }
}

template <int ROWS = MAX_ROWS>
void attend_some(int count, const Cached& c, int position, int advance, const float* q, int q_stride, float* out, int out_stride) {
    if constexpr (ROWS > 0) {
        if (count == ROWS) return attend<ROWS>(c, position, advance, q, q_stride, out, out_stride);
        attend_some<ROWS - 1>(count, c, position, advance, q, q_stride, out, out_stride);
    }
}

// Attention of the `group` query heads of one key-value head, for `count` neighbouring rows; q and out are [rows][heads][head_dim].
void attend_rows(const Cached& c, int count, int group, int position, const float* q, int q_stride, float* out, int out_stride) {
    const int D = c.head_dim;
    if (count == 1 && group <= MAX_ROWS) return attend_some(group, c, position, 0, q, D, out, D);
    for (int g = 0; g < group; g++) attend_some(count, c, position, 1, q + g * D, q_stride, out + g * D, out_stride);
}

#ifdef HAS_TILES
// The values of 32 positions from block `first` on, 16 numbers of each, as a panel; zeros from position `last` on.
struct ValuePanel {
    Cached c;
    int first, last, begin_at;
    void begin(int) {}
    template <int ODD>
    vec at(int k, int) const {
        if (first * PANEL + k >= last) return vec{};
        return load(c.values + c.at(first + k / PANEL) + (size_t)(k % PANEL) * c.head_dim + begin_at);
    }
};

// The same as attend_rows on tiles: by one product of bfloat16, or by four, as exact as float32. A block holds 16 positions.
void attend_tiles(const Cached& c, int count, int group, int position, int products, const float* q, int q_stride, float* out,
                  int out_stride) {
    static thread_local Room<uint16_t> of_queries, of_keys, of_values, of_weights;
    static thread_local Room<float> of_mixed;
    static thread_local std::vector<Softmax> softmax;
    const int D = c.head_dim, B = PANEL, last = position + count, all = (last - 1) / B + 1;
    const int rows = (count + PANEL - 1) / PANEL, pairs = (rows + 1) / 2 * 2, panels = D / PANEL;
    products = products > 1 ? 4 : 1;
    const bool rest = products > 1, weights_rest = products > 2;
    const size_t of_q = (size_t)depth_tiles(D) * (1 + rest) * TILE, w_step = (1 + weights_rest) * TILE, x_step = (1 + rest) * TILE;
    const float scale = 1.0f / std::sqrt((float)D);
    uint16_t *queries = of_queries.of(group * pairs * of_q), *keys = of_keys.of(SPAN * depth_tiles(D) * w_step);
    uint16_t *values = of_values.of(panels * SPAN / 2 * w_step), *weights = of_weights.of(SPAN * x_step);
    float* all_mixed = of_mixed.of((size_t)group * pairs * PANEL * D);
    memset(all_mixed, 0, (size_t)group * pairs * PANEL * D * sizeof(float));
    softmax.assign(group * pairs * PANEL, Softmax());
    for (int g = 0; g < group; g++)
        for (int t = 0; t < pairs; t++)
            pack_rows(q + (size_t)t * PANEL * q_stride + g * D, q_stride, count - t * PANEL, D, rest, queries + (g * pairs + t) * of_q);
    for (int first = 0; first < all; first += SPAN) {
        const int blocks = all - first < SPAN ? all - first : SPAN, depth = (blocks + 1) / 2;
        for (int b = 0; b < blocks; b++) {
            Float32 key(c.keys + c.at(first + b), nullptr, nullptr, 0, D);
            for (int k = 0; k < depth_tiles(D); k++)
                unpack(key, k * DEPTH, D, weights_rest, keys + (b * depth_tiles(D) + k) * w_step);
        }
        for (int k = 0; k < depth; k++)
            for (int p = 0; p < panels; p++) {
                ValuePanel value = {c, first + 2 * k, last, p * PANEL};
                unpack(value, 0, DEPTH, weights_rest, values + (p * depth + k) * w_step);
            }
        for (int g = 0; g < group; g++)
            for (int t = 0; t < pairs; t += 2) {
                // Rows before these blocks do not attend to them; rows beyond `count` are padding.
                if (first * B >= position + (t + 2 < rows ? (t + 2) * PANEL : count)) continue;
                alignas(64) float scores[2 * PANEL * SPAN * PANEL];
                const int width = SPAN * PANEL, head = g * pairs + t;
                const Tiles from = {queries + head * of_q, x_step, of_q};
                for (int b = 0; b < blocks; b += 2) {
                    const Tiles these = {keys + b * depth_tiles(D) * w_step, w_step, depth_tiles(D) * w_step};
                    if (b + 1 < blocks) tile_block<2, 2>(from, these, depth_tiles(D), true, products, scores + b * PANEL, width);
                    else tile_block<2, 1>(from, these, depth_tiles(D), true, products, scores + b * PANEL, width);
                }
                float* mixed = all_mixed + (size_t)head * PANEL * D;
                for (int j = 0; j < 2 * PANEL; j++) {
                    const int seen = position + t * PANEL + j + 1 - first * B;
                    const float fade = softmax[head * PANEL + j].add(scores + j * width, blocks * B, seen, scale);
                    if (fade != 1.0f)
                        for (int i = 0; i < D; i += LANES) store(mixed + j * D + i, load(mixed + j * D + i) * fade);
                }
                for (int half = 0; half < 2; half++)
                    pack_rows(scores + half * PANEL * width, width, PANEL, blocks * B, rest, weights + half * depth * x_step);
                const Tiles by = {weights, x_step, depth * x_step};
                for (int p = 0; p < panels; p += 2) {
                    const Tiles these = {values + p * depth * w_step, w_step, depth * w_step};
                    if (p + 1 < panels) tile_block<2, 2>(by, these, depth, false, products, mixed + p * PANEL, D);
                    else tile_block<2, 1>(by, these, depth, false, products, mixed + p * PANEL, D);
                }
            }
    }
    for (int g = 0; g < group; g++)
        for (int r = 0; r < count; r++) {
            const size_t at = g * pairs * PANEL + r;
            const float all_weights = total(softmax[at].sum);
            for (int i = 0; i < D; i += LANES) store(out + (size_t)r * out_stride + g * D + i, load(all_mixed + at * D + i) / all_weights);
        }
}
#else
inline void attend_tiles(const Cached&, int, int, int, int, const float*, int, float*, int) {}
#endif

}  // namespace
