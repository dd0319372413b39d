// Products of float32 rows with matrices in panels of 16 outputs, [panels][inputs][16], in one of four formats; groups of 32 inputs
// share a scale. The arithmetic is float32 with vector instructions, fast enough for the memory bandwidth to be the limit.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int PANEL = 16, GROUP = 32;
#ifdef __AVX512F__
constexpr int LANES = 16, MAX_ROWS = 12, REGISTERS = 32;
#else
constexpr int LANES = 8, MAX_ROWS = 6, REGISTERS = 16;
#endif
constexpr int PARTS = PANEL / LANES;

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4), aligned(4)));

inline vec load(const float* p) { return *(const vec*)p; }
inline void store(float* p, vec v) { *(vec*)p = v; }

// Loads LANES small numbers as integers or floats. On x86, compilers make poor code of the portable form.
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

// Prefetches `bytes` of memory; the hardware prefetcher does not follow the jumps from panel to panel.
inline void fetch(const void* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)from + i);
}

// Each format gives the 16 weights of input k of a panel as PARTS vectors (`at`; ODD is k % 2). `begin` reads what a group of inputs
// shares, and `fetch_group` prefetches the group of input k of the panel that is `ahead` panels further on.
struct Float32 {
    const float* w;
    size_t panel_size;
    Float32() = default;
    Float32(const void* data, const void*, const void*, int panel, int k_size)
        : w((const float*)data + (size_t)panel * k_size * PANEL), panel_size((size_t)k_size * PANEL) {}
    void begin(int) {}
    void fetch_group(int k, int ahead) const { fetch(w + (size_t)k * PANEL + ahead * panel_size, GROUP * PANEL * sizeof *w); }
    template <int ODD>
    vec at(int k, int part) const { return load(w + (size_t)k * PANEL + part * LANES); }
};

struct BFloat16 {
    const uint16_t* w;
    size_t panel_size;
    BFloat16() = default;
    BFloat16(const void* data, const void*, const void*, int panel, int k_size)
        : w((const uint16_t*)data + (size_t)panel * k_size * PANEL), panel_size((size_t)k_size * PANEL) {}
    void begin(int) {}
    void fetch_group(int k, int ahead) const { fetch(w + (size_t)k * PANEL + ahead * panel_size, GROUP * PANEL * sizeof *w); }
    template <int ODD>
    vec at(int k, int part) const {
        return (vec)(widen(w + (size_t)k * PANEL + part * LANES) << 16);
    }
};

struct Int8 {
    const int8_t* w;
    const _Float16* scales;
    size_t panel_size;
    vec scale[PARTS];
    Int8() = default;
    Int8(const void* data, const void* scale_data, const void*, int panel, int k_size)
        : w((const int8_t*)data + (size_t)panel * k_size * PANEL),
          scales((const _Float16*)scale_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL),
          panel_size((size_t)k_size * PANEL) {}
    void fetch_group(int k, int ahead) const { fetch(w + (size_t)k * PANEL + ahead * panel_size, GROUP * PANEL); }
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
    size_t panel_size;
    vec scale[PARTS], least[PARTS];
    Int4() = default;
    Int4(const void* data, const void* scale_data, const void* least_data, int panel, int k_size)
        : w((const uint8_t*)data + (size_t)panel * (k_size / 2) * PANEL),
          scales((const _Float16*)scale_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL),
          leasts((const _Float16*)least_data + (size_t)panel * ((k_size + GROUP - 1) / GROUP) * PANEL),
          panel_size((size_t)(k_size / 2) * PANEL) {}
    void fetch_group(int k, int ahead) const { fetch(w + (size_t)(k / 2) * PANEL + ahead * panel_size, GROUP / 2 * PANEL); }
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

// out[r][16 * p + i] = (or += with `add`) the products of ROWS rows and PANELS panels; every output is summed in the order of k.
template <class Format, int ROWS, int PANELS>
void tile(const float* x, int x_stride, const Format* formats, int k_size, float* out, int out_stride, bool add) {
    Format w[PANELS];
    for (int p = 0; p < PANELS; p++) w[p] = formats[p];
    vec sum[ROWS][PANELS][PARTS] = {};
    for (int begin = 0; begin < k_size; begin += GROUP) {
        for (int p = 0; p < PANELS; p++) {
            w[p].begin(begin / GROUP);
            w[p].fetch_group(begin, PANELS);
        }
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

// As many panels at once as there are registers for their sums; with fewer, additions would wait for one another.
template <int ROWS>
constexpr int panels_at_once() { return ROWS == 1 ? 4 : ROWS * 2 * PARTS <= REGISTERS * 3 / 4 ? 2 : 1; }

template <class Format, int ROWS, int PANELS = panels_at_once<ROWS>()>
void rows_of(const float* x, int x_stride, const Format* w, int panels, int k_size, float* out, int out_stride, bool add) {
    int p = 0;
    for (; p + PANELS <= panels; p += PANELS) tile<Format, ROWS, PANELS>(x, x_stride, w + p, k_size, out + p * PANEL, out_stride, add);
    if constexpr (PANELS > 1) rows_of<Format, ROWS, PANELS / 2>(x, x_stride, w + p, panels - p, k_size, out + p * PANEL, out_stride, add);
}

template <class Format, int ROWS = MAX_ROWS>
void few_rows(int rows, const float* x, int x_stride, const Format* w, int panels, int k_size, float* out, int out_stride, bool add) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) return rows_of<Format, ROWS>(x, x_stride, w, panels, k_size, out, out_stride, add);
        few_rows<Format, ROWS - 1>(rows, x, x_stride, w, panels, k_size, out, out_stride, add);
    }
}

// Memory that is aligned to a cache line, and grows as needed.
template <class T>
struct Room {
    std::vector<T> all;
    T* of(size_t size) {
        if (all.size() < size + 64) all.resize(size + 64);
        return (T*)(((uintptr_t)all.data() + 63) / 64 * 64);
    }
};

struct Matrix {
    const void *data, *scales, *leasts;
    int32_t format, outputs, inputs;  // outputs padded to whole panels
};

// Writes the weights of a panel as floats [inputs][16].
template <class Format>
void unpack_panel(Format w, int k_size, float* out) {
    for (int k = 0; k < k_size; k++) {
        if (k % GROUP == 0) w.begin(k / GROUP);
        for (int i = 0; i < PARTS; i++, out += LANES) store(out, k % 2 ? w.template at<1>(k, i) : w.template at<0>(k, i));
    }
}

template <class Format>
void panels_of(const Matrix& m, const float* x, int rows, int first, int count, float* out, int out_stride, bool add) {
    Format w[4];
    for (int p = 0; p < count; p++) w[p] = Format(m.data, m.scales, m.leasts, first + p, m.inputs);
    int tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    auto in_tiles = [&](const auto* panels) {
        for (int t = 0, r = 0; t < tiles; t++) {
            int here = (rows - r + tiles - t - 1) / (tiles - t);
            few_rows(here, x + (size_t)r * m.inputs, m.inputs, panels, count, m.inputs, out + (size_t)r * out_stride + first * PANEL, out_stride, add);
            r += here;
        }
    };
    if (tiles == 1 || std::is_same_v<Format, Float32>) return in_tiles(w);
    static thread_local Room<float> of_floats;
    float* unpacked = of_floats.of((size_t)4 * m.inputs * PANEL);
    Float32 floats[4];
    for (int p = 0; p < count; p++) {
        unpack_panel(w[p], m.inputs, unpacked + (size_t)p * m.inputs * PANEL);
        floats[p] = Float32(unpacked, nullptr, nullptr, p, m.inputs);
    }
    in_tiles(floats);
}

// out [rows, out_stride] = x [rows, inputs] times the panels first ... first + count (at most 4) of m, or += with `add`.
void multiply(const Matrix& m, const float* x, int rows, int first, int count, float* out, int out_stride, bool add) {
    if (m.format == 0) panels_of<Float32>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 1) panels_of<BFloat16>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 2) panels_of<Int8>(m, x, rows, first, count, out, out_stride, add);
    if (m.format == 3) panels_of<Int4>(m, x, rows, first, count, out, out_stride, add);
}

}  // namespace
