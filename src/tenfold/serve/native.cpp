// One step of a Llama 3 on a CPU, for rows that are each a token at a position of some sequence.
//
// Every row writes its key and value into the cache's blocks, then attends to its own sequence up to its own position. Rows of
// prompts may be multiplied by tiles, those of replies never: every number is summed in an order that depends on nothing but the
// row, so results do not depend, to the bit, on what else is in the batch or how a prompt was cut into steps.

#include <omp.h>

#include <vector>

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

void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    vec sum = {};
    for (int i = 0; i < size; i += LANES) sum += load(x + i) * load(x + i);
    const float scale = 1.0f / std::sqrt(total(sum) / size + eps);
    for (int i = 0; i < size; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
}

// sum[j][lanes] += the sum over i < count of a[j][i] * b[i][lanes], for ROWS rows j of STRIDE numbers.
template <int ROWS, int STRIDE>
inline void add_outer(const float* a, const float* b, int b_stride, int count, vec (&sum)[ROWS]) {
    for (int i = 0; i < count; i++) {
        vec other = load(b + (size_t)i * b_stride);
#pragma GCC unroll 16
        for (int j = 0; j < ROWS; j++) sum[j] += a[j * STRIDE + i] * other;
    }
}

struct Layer {
    Matrix wqkv, wo, w1, w3, w2;
    const float *attention_norm, *ffn_norm;
};

struct Model {
    int32_t dim, layers, heads, kv_heads, head_dim, ffn, block;  // ffn padded to whole panels
    int32_t products;                                            // of tiles for a product of prompts' rows; 0 uses no tiles
    float eps;
    const Layer* layer;
    const float *norm, *rope;  // rope [positions][head_dim / 2][cos, sin]
    Matrix head;
    float *keys, *values;  // [layers][blocks][kv_heads][head_dim][block], [layers][blocks][kv_heads][block][head_dim]
    int64_t layer_size;    // floats of one layer of either
};

// Rows of one sequence at neighbouring positions, which attend together.
struct Run {
    int first, count;
};

std::vector<Run> runs_of(int rows, const int32_t* positions, const int32_t* starts) {
    std::vector<Run> runs;
    for (int r = 0; r < rows; r++) {
        bool goes_on = r && starts[r] == starts[r - 1] && positions[r] == positions[r - 1] + 1;
        if (goes_on && runs.back().count < MAX_ROWS) runs.back().count++;
        else runs.push_back({r, 1});
    }
    return runs;
}

constexpr int SPAN = 4;         // blocks between two updates of the softmax
constexpr int MOST_HEAD = 256;  // numbers of a head

// One head of ROWS neighbouring rows: q and out [ROWS, stride], over the blocks of `table` up to each row's own position. The
// softmax goes along, some blocks at a time (arXiv 1805.02867).
template <int ROWS>
void attend(const Model& m, const float* keys, const float* values, const int32_t* table, int kv, int position, const float* q,
            int q_stride, float* out, int out_stride) {
    const int D = m.head_dim, B = m.block, all = (position + ROWS - 1) / B + 1;
    const float scale = 1.0f / std::sqrt((float)D);
    float scaled[ROWS][MOST_HEAD], weights[ROWS][SPAN * PANEL], most[ROWS], fade[ROWS];
    vec totals[ROWS] = {};
    for (int j = 0; j < ROWS; j++) {
        most[j] = -INFINITY;
        for (int i = 0; i < D; i += LANES) {
            store(scaled[j] + i, load(q + (size_t)j * q_stride + i) * scale);
            store(out + (size_t)j * out_stride + i, vec{});
        }
    }
    for (int first = 0; first < all; first += SPAN) {
        const int blocks = all - first < SPAN ? all - first : SPAN, width = blocks * B;
        size_t at[SPAN];
        for (int b = 0; b < blocks; b++) {
            at[b] = ((size_t)table[first + b] * m.kv_heads + kv) * D * B;
            for (int i = 0; i < B; i += LANES) {
                vec sum[ROWS] = {};
                add_outer<ROWS, MOST_HEAD>(scaled[0], keys + at[b] + i, B, D, sum);
                for (int j = 0; j < ROWS; j++) store(weights[j] + b * B + i, sum[j]);
            }
        }
        const int seen = position + 1 - first * B;  // of these, by row 0; each further row sees one more
        for (int j = 0; j < ROWS; j++) {
            for (int t = seen + j > 0 ? seen + j : 0; t < width; t++) weights[j][t] = -INFINITY;
            vec high = load(weights[j]);
            for (int t = LANES; t < width; t += LANES) {
                vec score = load(weights[j] + t);
                high = score > high ? score : high;
            }
            const float top = std::fmax(most[j], largest(high));
            fade[j] = top == most[j] ? 1.0f : std::exp(most[j] - top);
            most[j] = top;
            totals[j] *= fade[j];
            for (int t = 0; t < width; t += LANES) {
                vec score = load(weights[j] + t), weight = score == -INFINITY ? vec{} : exponential(score - top);
                totals[j] += weight;
                store(weights[j] + t, weight);
            }
        }
        for (int i = 0; i < D; i += LANES) {
            vec mix[ROWS];
            for (int j = 0; j < ROWS; j++) mix[j] = load(out + (size_t)j * out_stride + i) * fade[j];
            for (int b = 0; b < blocks; b++) {
                const float* value = values + at[b] + i;
                if (seen >= (b + 1) * B) {
                    add_outer<ROWS, SPAN * PANEL>(weights[0] + b * B, value, D, B, mix);
                    continue;
                }
                for (int j = 0; j < ROWS; j++) {  // what stands in places that a row does not see may be anything
                    const int own = seen + j - b * B;
                    vec sum[1] = {mix[j]};
                    add_outer<1, 0>(weights[j] + b * B, value, D, own < 0 ? 0 : own < B ? own : B, sum);
                    mix[j] = sum[0];
                }
            }
            for (int j = 0; j < ROWS; j++) store(out + (size_t)j * out_stride + i, mix[j]);
        }
    }
    for (int j = 0; j < ROWS; j++) {
        const float all_weights = total(totals[j]);
        for (int i = 0; i < D; i += LANES) {
            float* to = out + (size_t)j * out_stride + i;
            store(to, load(to) / all_weights);
        }
    }
}

template <int ROWS = MAX_ROWS>
void attend_run(int count, const Model& m, const float* keys, const float* values, const int32_t* table, int kv, int position,
                const float* q, int q_stride, float* out, int out_stride) {
    if constexpr (ROWS > 0) {
        if (count == ROWS) return attend<ROWS>(m, keys, values, table, kv, position, q, q_stride, out, out_stride);
        attend_run<ROWS - 1>(count, m, keys, values, table, kv, position, q, q_stride, out, out_stride);
    }
}

// gate = silu(gate) * up, for `count` neighbours.
void swiglu(float* gate, const float* up, int count) {
    for (int i = 0; i < count; i += LANES) {
        vec g = load(gate + i), e = exponential(g < 0 ? g : -g);
        store(gate + i, load(up + i) * g * (g < 0 ? e : vec{} + 1.0f) / (1.0f + e));
    }
}

// The products of one step, each shared out among the threads of a team that all call it: `replies` rows on vectors, and
// those that follow, of prompts, on tiles.
struct Products {
    int rows, replies, products;
    uint16_t *packed, *packed_gate;  // what the next products of prompts' rows take; of the feed-forward's second, of its own

    int blocks() const { return (rows - replies + PANEL - 1) / PANEL; }
    size_t tiles_of(int inputs) const { return (size_t)depth_tiles(inputs) * (1 + (products > 1)) * TILE; }

    void pack(const float* x, int inputs) const {
#pragma omp for schedule(static)
        for (int b = 0; b < blocks(); b++) {
            const int first = replies + b * PANEL;
            pack_rows(x + (size_t)first * inputs, inputs, rows - first, inputs, products > 1, packed + b * tiles_of(inputs));
        }
    }

    // out [rows, stride] (+)= x, whose rows of prompts are `packed`, times m.
    void multiply_by(const Matrix& m, const float* x, const uint16_t* packed, float* out, int stride, bool add) const {
        const int panels = m.outputs / PANEL, at_once = add ? 1 : 4;
        if (replies) {
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p += at_once)
                multiply(m, x, replies, p, panels - p < at_once ? panels - p : at_once, out, stride, add);
        }
        if (rows > replies) {
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p += 2) {
                float* to = out + (size_t)replies * stride + p * PANEL;
                multiply_tiles(m, packed, blocks(), p, panels - p < 2 ? 1 : 2, add, products, to, stride);
            }
        }
    }

    // The feed-forward's first half: gate [replies, stride] = silu(x w1) * (x w3), and `packed_gate`. `gates` and `ups` are of
    // this thread, 32 numbers a row of a prompt.
    void gate_by(const Matrix& w1, const Matrix& w3, const float* x, float* gate, float* up, int stride, float* gates, float* ups) const {
        const int panels = w1.outputs / PANEL;
        if (replies) {
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p += 4) {
                const int count = panels - p < 4 ? panels - p : 4;
                multiply(w1, x, replies, p, count, gate, stride, false);
                multiply(w3, x, replies, p, count, up, stride, false);
                for (int r = 0; r < replies; r++) {
                    const size_t at = (size_t)r * stride + p * PANEL;
                    swiglu(gate + at, up + at, count * PANEL);
                }
            }
        }
        if (rows > replies) {
#pragma omp for schedule(static)
            for (int p = 0; p < panels; p += 2) {
                const int count = panels - p < 2 ? 1 : 2, width = 2 * PANEL;
                multiply_tiles(w1, packed, blocks(), p, count, false, products, gates, width);
                multiply_tiles(w3, packed, blocks(), p, count, false, products, ups, width);
                swiglu(gates, ups, blocks() * PANEL * width);
                for (int b = 0; b < blocks(); b++) {
                    uint16_t* to = packed_gate + b * tiles_of(w1.outputs) + tiles_of(width) * (p / 2);
                    pack_rows(gates + b * PANEL * width, width, PANEL, count * PANEL, products > 1, to);
                }
            }
        }
    }
};

}  // namespace

// Whether this machine has a matrix unit that rows of prompts can use.
extern "C" int tenfold_tiles() { return may_use_tiles(); }

// Embedded rows `x` become normed last hidden states. Row r stands at positions[r] of the sequence whose blocks are
// tables[starts[r]...]; the first `replies` go on vectors, the others on tiles. `x` [rows, dim] and `scratch`, of
// dim + qkv + heads * head_dim + 2 * ffn + 64 * threads floats a row, have room for 15 rows more; `packed` and `packed_gate` hold
// the widest input, padded to 32, twice in bfloat16 for every row, padded to 16.
extern "C" void tenfold_forward(const Model* m, int rows, int replies, float* x, const int32_t* positions, const int32_t* tables,
                                const int32_t* starts, float* scratch, uint16_t* packed, uint16_t* packed_gate, int threads) {
    const int D = m->head_dim, group = m->heads / m->kv_heads, span = (group + 2) * D, B = m->block;
    const int qkv_stride = m->layer[0].wqkv.outputs, mixed_size = m->heads * D;
    const size_t room = rows + PANEL - 1;
    float *normed = scratch, *qkv = normed + room * m->dim, *mixed = qkv + room * qkv_stride;
    float *gate = mixed + room * mixed_size, *up = gate + room * m->ffn, *own = up + room * m->ffn;
    const Products products = {rows, replies, m->products, packed, packed_gate};
    const std::vector<Run> runs = runs_of(rows, positions, starts);

#pragma omp parallel num_threads(threads)
    {
        float* gates = own + 4 * PANEL * room * omp_get_thread_num();
        if (rows > replies) begin_tiles();
        for (int l = 0; l < m->layers; l++) {
            const Layer& layer = m->layer[l];
            float *keys = m->keys + l * m->layer_size, *values = m->values + l * m->layer_size;
#pragma omp for schedule(static)
            for (int r = 0; r < rows; r++)
                rms_norm(x + (size_t)r * m->dim, layer.attention_norm, m->dim, m->eps, normed + (size_t)r * m->dim);
            products.pack(normed, m->dim);
            products.multiply_by(layer.wqkv, normed, packed, qkv, qkv_stride, false);

#pragma omp for schedule(static) collapse(2)
            for (int r = 0; r < rows; r++)
                for (int h = 0; h < m->kv_heads; h++) {
                    float* heads = qkv + (size_t)r * qkv_stride + h * span;
                    const float* turn = m->rope + (size_t)positions[r] * D;
                    for (int g = 0; g <= group; g++)
                        for (int i = 0; i < D; i += 2) {
                            float a = heads[g * D + i], b = heads[g * D + i + 1], c = turn[i], s = turn[i + 1];
                            heads[g * D + i] = a * c - b * s;
                            heads[g * D + i + 1] = a * s + b * c;
                        }
                    size_t at = ((size_t)tables[starts[r] + positions[r] / B] * m->kv_heads + h) * D * B;
                    int slot = positions[r] % B;
                    for (int i = 0; i < D; i++) keys[at + i * B + slot] = heads[group * D + i];
                    memcpy(values + at + slot * D, heads + (group + 1) * D, D * sizeof(float));
                }

#pragma omp for schedule(dynamic) collapse(2)
            for (size_t n = 0; n < runs.size(); n++)
                for (int head = 0; head < m->heads; head++) {
                    const int r = runs[n].first, kv = head / group;
                    const float* q = qkv + (size_t)r * qkv_stride + kv * span + (head % group) * D;
                    attend_run(runs[n].count, *m, keys, values, tables + starts[r], kv, positions[r], q, qkv_stride,
                               mixed + (size_t)r * mixed_size + head * D, mixed_size);
                }
            products.pack(mixed, mixed_size);
            products.multiply_by(layer.wo, mixed, packed, x, m->dim, true);

#pragma omp for schedule(static)
            for (int r = 0; r < rows; r++)
                rms_norm(x + (size_t)r * m->dim, layer.ffn_norm, m->dim, m->eps, normed + (size_t)r * m->dim);
            products.pack(normed, m->dim);
            products.gate_by(layer.w1, layer.w3, normed, gate, up, m->ffn, gates, gates + 2 * PANEL * room);
            products.multiply_by(layer.w2, gate, packed_gate, x, m->dim, true);
        }
        if (rows > replies) end_tiles();
    }
    for (int r = 0; r < rows; r++) rms_norm(x + (size_t)r * m->dim, m->norm, m->dim, m->eps, x + (size_t)r * m->dim);
}

// Logits [rows, outputs of the head] of normed hidden states [rows, dim].
extern "C" void tenfold_logits(const Model* m, int rows, const float* hidden, float* out, int threads) {
    const int panels = m->head.outputs / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int p = 0; p < panels; p += 4)
        multiply(m->head, hidden, rows, p, panels - p < 4 ? panels - p : 4, out, m->head.outputs, false);
}
