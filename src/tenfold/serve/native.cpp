// One step of a Llama 3 on a CPU, for rows that are each a token at a position of some sequence.
//
// A prompt and a reply are the same to this code: every row writes its key and value into the cache's blocks, then attends
// to its own sequence up to its own position. Every number is summed in an order that depends on nothing but the row, so
// results do not depend, to the bit, on what else is in the batch or how a prompt was cut into steps.
//
// Weights stand in panels of 16 outputs, [panels][inputs][16], in one of four formats; groups of 32 inputs share a scale.

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int PANEL = 16, GROUP = 32;
#ifdef __AVX512F__
constexpr int LANES = 16, MAX_ROWS = 12;
#else
constexpr int LANES = 8, MAX_ROWS = 6;
#endif
constexpr int PARTS = PANEL / LANES;

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4), aligned(4)));

inline vec load(const float* p) { return *(const vec*)p; }
inline void store(float* p, vec v) { *(vec*)p = v; }

// LANES small numbers from memory as integers or floats. Compilers make poor code of the portable form on x86.
#if defined(__AVX512F__)
inline ints widen(const int8_t* p) { return (ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline ints widen(const uint8_t* p) { return (ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline ints widen(const uint16_t* p) { return (ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline vec widen(const _Float16* p) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
#elif defined(__AVX2__) && defined(__F16C__)
inline ints widen(const int8_t* p) { return (ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline ints widen(const uint8_t* p) { return (ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline ints widen(const uint16_t* p) { return (ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline vec widen(const _Float16* p) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
#else
template <class T, class Wide = ints>
inline Wide widen_lanes(const T* p) {
    typedef T few __attribute__((vector_size(LANES * sizeof(T)), aligned(1)));
    return __builtin_convertvector(*(const few*)p, Wide);
}
inline ints widen(const int8_t* p) { return widen_lanes(p); }
inline ints widen(const uint8_t* p) { return widen_lanes(p); }
inline ints widen(const uint16_t* p) { return widen_lanes(p); }
inline vec widen(const _Float16* p) { return widen_lanes<_Float16, vec>(p); }
#endif
inline vec to_float(ints q) { return __builtin_convertvector(q, vec); }

// Each format gives 16 weights of input k of a panel as PARTS vectors; `begin` reads what the group of k shares. Inputs come
// in pairs, of which ODD is the second.
struct Float32 {
    const float* w;
    Float32() = default;
    Float32(const void* data, const void*, const void*, int panel, int k_size) : w((const float*)data + (size_t)panel * k_size * PANEL) {}
    void begin(int) {}
    template <int ODD>
    vec at(int k, int part) const { return load(w + (size_t)k * PANEL + part * LANES); }
};

struct BFloat16 {
    const uint16_t* w;
    BFloat16() = default;
    BFloat16(const void* data, const void*, const void*, int panel, int k_size)
        : w((const uint16_t*)data + (size_t)panel * k_size * PANEL) {}
    void begin(int) {}
    template <int ODD>
    vec at(int k, int part) const {
        return (vec)(widen(w + (size_t)k * PANEL + part * LANES) << 16);
    }
};

struct Int8 {
    const int8_t* w;
    const _Float16* scales;
    vec scale[PARTS];
    Int8() = default;
    Int8(const void* data, const void* scale_data, const void*, int panel, int k_size)
        : w((const int8_t*)data + (size_t)panel * k_size * PANEL),
          scales((const _Float16*)scale_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL) {}
    void begin(int group) {
        for (int i = 0; i < PARTS; i++) scale[i] = widen(scales + group * PANEL + i * LANES);
    }
    template <int ODD>
    vec at(int k, int part) const {
        return to_float(widen(w + (size_t)k * PANEL + part * LANES)) * scale[part];
    }
};

struct Int4 {  // two inputs in a byte, the even one low; weight = scale * q + least
    const uint8_t* w;
    const _Float16 *scales, *leasts;
    vec scale[PARTS], least[PARTS];
    Int4() = default;
    Int4(const void* data, const void* scale_data, const void* least_data, int panel, int k_size)
        : w((const uint8_t*)data + (size_t)panel * (k_size / 2) * PANEL),
          scales((const _Float16*)scale_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL),
          leasts((const _Float16*)least_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL) {}
    void begin(int group) {
        for (int i = 0; i < PARTS; i++) {
            scale[i] = widen(scales + group * PANEL + i * LANES);
            least[i] = widen(leasts + group * PANEL + i * LANES);
        }
    }
    template <int ODD>
    vec at(int k, int part) const {
        ints two = widen(w + (size_t)(k / 2) * PANEL + part * LANES);
        return to_float(ODD ? two >> 4 : two & 15) * scale[part] + least[part];
    }
};

template <int ODD, class Format, int ROWS, int PANELS>
__attribute__((always_inline)) inline void add_input(
    const float* x, int x_stride, const Format (&w)[PANELS], int k, vec (&sum)[ROWS][PANELS][PARTS]) {
    vec weight[PANELS][PARTS];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) weight[p][i] = w[p].template at<ODD>(k, i);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++)
#pragma GCC unroll 4
            for (int i = 0; i < PARTS; i++) sum[r][p][i] += x[(size_t)r * x_stride + k] * weight[p][i];
}

// out[r][16 * p + i] for ROWS rows and PANELS panels; every output is summed in the order of k.
template <class Format, int ROWS, int PANELS>
void tile(const float* x, int x_stride, const Format* formats, int k_size, float* out, int out_stride, bool add) {
    Format w[PANELS];
    for (int p = 0; p < PANELS; p++) w[p] = formats[p];
    vec sum[ROWS][PANELS][PARTS] = {};
    for (int begin = 0; begin < k_size; begin += GROUP) {
        for (int p = 0; p < PANELS; p++) w[p].begin(begin / GROUP);
        int end = begin + GROUP < k_size ? begin + GROUP : k_size;
        for (int k = begin; k < end; k += 2) {
            add_input<0>(x, x_stride, w, k, sum);
            add_input<1>(x, x_stride, w, k + 1, sum);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++)
            for (int i = 0; i < PARTS; i++) {
                float* to = out + (size_t)r * out_stride + p * PANEL + i * LANES;
                store(to, add ? load(to) + sum[r][p][i] : sum[r][p][i]);
            }
}

template <class Format, int ROWS>
void rows_of(const float* x, int x_stride, const Format* w, int panels, int k_size, float* out, int out_stride, bool add) {
    constexpr int AT_ONCE = ROWS == 1 ? 4 : ROWS <= MAX_ROWS / 2 ? 2 : 1;
    int p = 0;
    for (; p + AT_ONCE <= panels; p += AT_ONCE)
        tile<Format, ROWS, AT_ONCE>(x, x_stride, w + p, k_size, out + p * PANEL, out_stride, add);
    for (; p < panels; p++) tile<Format, ROWS, 1>(x, x_stride, w + p, k_size, out + p * PANEL, out_stride, add);
}

template <class Format, int ROWS = MAX_ROWS>
void few_rows(int rows, const float* x, int x_stride, const Format* w, int panels, int k_size, float* out, int out_stride, bool add) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) return rows_of<Format, ROWS>(x, x_stride, w, panels, k_size, out, out_stride, add);
        few_rows<Format, ROWS - 1>(rows, x, x_stride, w, panels, k_size, out, out_stride, add);
    }
}

struct Matrix {
    const void *data, *scales, *leasts;
    int32_t format, outputs, inputs;  // outputs padded to whole panels
};

template <class Format>
void panels_of(const Matrix& m, const float* x, int rows, int first, int count, float* out, int out_stride, bool add) {
    Format w[4];
    for (int p = 0; p < count; p++) w[p] = Format(m.data, m.scales, m.leasts, first + p, m.inputs);
    int tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int t = 0, r = 0; t < tiles; t++) {
        int here = (rows - r + tiles - t - 1) / (tiles - t);
        few_rows<Format>(here, x + (size_t)r * m.inputs, m.inputs, w, count, m.inputs, out + (size_t)r * out_stride + first * PANEL, out_stride, add);
        r += here;
    }
}

// out [rows, out_stride] (+)= x [rows, inputs] times panels first ... first + count (at most 4) of m.
void multiply(const Matrix& m, const float* x, int rows, int first, int count, float* out, int out_stride, bool add) {
    if (m.format == 0) panels_of<Float32>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 1) panels_of<BFloat16>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 2) panels_of<Int8>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 3) panels_of<Int4>(m, x, rows, first, count, out, out_stride, add);
}

inline vec exponential(vec x) {  // exp(x) for x <= 0: 2^n e^f with |f| <= ln 2 / 2, Taylor to f^7
    x = x < -87.0f ? x - x - 87.0f : x;
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

void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    float sum = 0;
    for (int i = 0; i < size; i++) sum += x[i] * x[i];
    float scale = 1.0f / std::sqrt(sum / size + eps);
    for (int i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

}  // namespace

struct Layer {
    Matrix wqkv, wo, w1, w3, w2;
    const float *attention_norm, *ffn_norm;
};

struct Model {
    int32_t dim, layers, heads, kv_heads, head_dim, ffn, block;  // ffn padded to whole panels
    float eps;
    const Layer* layer;
    const float *norm, *rope;  // rope [positions][head_dim / 2][cos, sin]
    Matrix head;
    float *keys, *values;  // [layers][blocks][kv_heads][head_dim][block], [layers][blocks][kv_heads][block][head_dim]
    int64_t layer_size;    // floats of one layer of either
};

// Embedded rows `x` [rows, dim] become normed last hidden states. Row r stands at positions[r] of the sequence whose
// blocks are tables[starts[r]...]. `scratch` holds rows * (dim + qkv + heads * head_dim + 2 * ffn) floats.
extern "C" void tenfold_forward(const Model* m, int rows, float* x, const int32_t* positions, const int32_t* tables,
                                const int32_t* starts, float* scratch, int threads) {
    const int D = m->head_dim, group = m->heads / m->kv_heads, span = (group + 2) * D, B = m->block;
    const int qkv_size = m->kv_heads * span, mixed_size = m->heads * D;
    float *normed = scratch, *qkv = normed + (size_t)rows * m->dim, *mixed = qkv + (size_t)rows * m->layer[0].wqkv.outputs;
    float *gate = mixed + (size_t)rows * mixed_size, *up = gate + (size_t)rows * m->ffn;
    const int qkv_stride = m->layer[0].wqkv.outputs;
    (void)qkv_size;

#pragma omp parallel num_threads(threads)
    for (int l = 0; l < m->layers; l++) {
        const Layer& layer = m->layer[l];
        float *keys = m->keys + l * m->layer_size, *values = m->values + l * m->layer_size;
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) rms_norm(x + (size_t)r * m->dim, layer.attention_norm, m->dim, m->eps, normed + (size_t)r * m->dim);

#pragma omp for schedule(static)
        for (int p = 0; p < layer.wqkv.outputs / PANEL; p += 4) {
            int left = layer.wqkv.outputs / PANEL - p;
            multiply(layer.wqkv, normed, rows, p, left < 4 ? left : 4, qkv, qkv_stride, false);
        }

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

#pragma omp for schedule(static, 1) collapse(2)
        for (int r = 0; r < rows; r++)
            for (int head = 0; head < m->heads; head++) {
                int kv = head / group, context = positions[r] + 1, blocks = (context + B - 1) / B;
                const float* q = qkv + (size_t)r * qkv_stride + kv * span + (head % group) * D;
                const int32_t* table = tables + starts[r];
                float* out = mixed + (size_t)r * mixed_size + head * D;
                float scale = 1.0f / std::sqrt((float)D), scores[PANEL], most = -INFINITY, total = 0;
                for (int i = 0; i < D; i++) out[i] = 0;
                for (int b = 0; b < blocks; b++) {
                    size_t at = ((size_t)table[b] * m->kv_heads + kv) * D * B;
                    int here = context - b * B < B ? context - b * B : B;
                    vec sum[PARTS] = {};
                    for (int i = 0; i < D; i++)
                        for (int p = 0; p < PARTS; p++) sum[p] += q[i] * load(keys + at + i * B + p * LANES);
                    for (int p = 0; p < PARTS; p++) store(scores + p * LANES, sum[p] * scale);
                    float top = most;
                    for (int t = 0; t < here; t++) top = scores[t] > top ? scores[t] : top;
                    for (int t = here; t < PANEL; t++) scores[t] = -INFINITY;
                    float fade = b ? std::exp(most - top) : 0.0f;
                    for (int p = 0; p < PARTS; p++) store(scores + p * LANES, exponential(load(scores + p * LANES) - top));
                    most = top;
                    total *= fade;
                    for (int t = 0; t < here; t++) total += scores[t];
                    for (int i = 0; i < D; i += LANES) {
                        vec mix = load(out + i) * fade;
                        for (int t = 0; t < here; t++) mix += scores[t] * load(values + at + t * D + i);
                        store(out + i, mix);
                    }
                }
                for (int i = 0; i < D; i++) out[i] /= total;
            }

#pragma omp for schedule(static)
        for (int p = 0; p < layer.wo.outputs / PANEL; p++) multiply(layer.wo, mixed, rows, p, 1, x, m->dim, true);

#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) rms_norm(x + (size_t)r * m->dim, layer.ffn_norm, m->dim, m->eps, normed + (size_t)r * m->dim);

#pragma omp for schedule(static)
        for (int p = 0; p < layer.w1.outputs / PANEL; p += 4) {
            int left = layer.w1.outputs / PANEL - p, count = left < 4 ? left : 4;
            multiply(layer.w1, normed, rows, p, count, gate, m->ffn, false);
            multiply(layer.w3, normed, rows, p, count, up, m->ffn, false);
            for (int r = 0; r < rows; r++)
                for (int i = 0; i < count * PANEL; i += LANES) {
                    size_t at = (size_t)r * m->ffn + p * PANEL + i;
                    vec g = load(gate + at), e = exponential(g < 0 ? g : -g);
                    store(gate + at, load(up + at) * g * (g < 0 ? e : e - e + 1.0f) / (1.0f + e));
                }
        }

#pragma omp for schedule(static)
        for (int p = 0; p < layer.w2.outputs / PANEL; p++) multiply(layer.w2, gate, rows, p, 1, x, m->dim, true);
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
