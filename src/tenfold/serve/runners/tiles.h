// Matrix products on a processor's matrix unit (Intel's AMX): tiles of 16 rows by 32 bfloat16 each, summed in float32.
//
// A float equals the sum of two bfloat16 up to 2^-17 of it. If results must be about as exact as float32's, x = x0 + x1 and
// w = w0 + w1 are multiplied as x1 w0 + x0 w0 + x0 w1; if the weights have been rounded anyway, as x0 w0. An output is summed in the
// order of its inputs, whatever other rows are computed with it.

#pragma once
#include "products.h"

#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <type_traits>

namespace {

constexpr int DEPTH = 32, TILE = PANEL * DEPTH;  // inputs in a tile, and numbers in it
constexpr int UNPACKED = 18;                     // tiles of a panel that are unpacked together, so that they stay in the L1/L2 cache

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Linux lets a process use the tile registers only after it has asked for them.
inline bool may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0; }
inline void begin_tiles() {
    static const TileShapes shapes;  // static: the compiler does not see that _tile_loadconfig reads all of it
    _tile_loadconfig(&shapes);
}
inline void end_tiles() { _tile_release(); }

// The nearest bfloat16, in the upper half of each lane.
inline ints rounded(vec v) { return ((ints)v + 0x8000) & (int)0xffff0000; }

inline void store_half(uint16_t* to, ints high) { _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)(high >> 16))); }

inline int depth_tiles(int inputs) { return (inputs + DEPTH - 1) / DEPTH; }

// Packs 16 rows of x [rows, stride], with zeros for missing rows, into tiles [inputs / 32][16][32] of the nearest bfloat16. With `rest`
// each tile is followed by one of the remainders, x minus the nearest bfloat16.
void pack_rows(const float* x, int stride, int rows, int inputs, bool rest, uint16_t* tiles) {
    for (int r = 0; r < PANEL; r++)
        for (int k = 0; k < depth_tiles(inputs) * DEPTH; k += LANES) {
            vec v = r < rows && k < inputs ? load(x + (size_t)r * stride + k) : vec{};
            ints near = rounded(v);
            uint16_t* to = tiles + (size_t)(k / DEPTH) * (1 + rest) * TILE + r * DEPTH + k % DEPTH;
            store_half(to, near);
            if (rest) store_half(to + TILE, rounded(v - (vec)near));
        }
}

// Unpacks the inputs begin ... begin + 32 of a panel into a tile of 16 pairs of inputs by 16 outputs, with `rest` followed by remainders.
template <class Format>
void unpack(Format& w, int begin, int inputs, bool rest, uint16_t* tiles) {
    w.begin(begin / GROUP);
    for (int k = begin; k < begin + DEPTH; k += 2) {
        vec even = {}, odd = {};
        if (k < inputs) even = w.template at<0>(k, 0), odd = w.template at<1>(k + 1, 0);
        ints a = rounded(even), b = rounded(odd);
        float* to = (float*)(tiles + (k - begin) * PANEL);
        store(to, (vec)(b | ((a >> 16) & 0xffff)));
        if (!rest) continue;
        a = rounded(even - (vec)a), b = rounded(odd - (vec)b);
        store(to + TILE / 2, (vec)(b | ((a >> 16) & 0xffff)));
    }
}

// Tile registers 0 ... 3 hold the sums of ROWS by PANELS tiles, 4 and 5 rows, 6 and 7 weights.
template <int ROWS, int PANELS>
inline void add_products() {
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (PANELS > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROWS > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (ROWS > 1 && PANELS > 1) _tile_dpbf16ps(3, 5, 7);
}

// Tiles of rows or of weights: those of the next inputs are `step` further on, those of the next 16 rows or the next panel `across`.
struct Tiles {
    const uint16_t* at;
    size_t step, across;
};

// out [16 * ROWS, stride] (+)= `depth` tiles of x times those of w. `products` is 1 (x0 w0), 2 (and x1 w0), 3 (and x0 w1) or 4
// (and x1 w1).
template <int ROWS, int PANELS>
void tile_block(Tiles x, Tiles w, int depth, bool from_zero, int products, float* out, size_t stride) {
    auto load_rows = [&](const uint16_t* at) {
        _tile_loadd(4, at, 64);
        if constexpr (ROWS > 1) _tile_loadd(5, at + x.across, 64);
    };
    auto load_weights = [&](const uint16_t* at) {
        _tile_loadd(6, at, 64);
        if constexpr (PANELS > 1) _tile_loadd(7, at + w.across, 64);
    };
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not see that tile loads read memory
    if (from_zero) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, out, stride * 4);
        if constexpr (PANELS > 1) _tile_loadd(1, out + PANEL, stride * 4);
        if constexpr (ROWS > 1) _tile_loadd(2, out + PANEL * stride, stride * 4);
        if constexpr (ROWS > 1 && PANELS > 1) _tile_loadd(3, out + PANEL * stride + PANEL, stride * 4);
    }
    for (int k = 0; k < depth; k++, x.at += x.step, w.at += w.step) {
        load_weights(w.at);
        if (products > 1) {
            load_rows(x.at + TILE);
            add_products<ROWS, PANELS>();
        }
        load_rows(x.at);
        add_products<ROWS, PANELS>();
        if (products > 2) {
            load_weights(w.at + TILE);
            add_products<ROWS, PANELS>();
            if (products > 3) {
                load_rows(x.at + TILE);
                add_products<ROWS, PANELS>();
            }
        }
    }
    _tile_stored(0, out, stride * 4);
    if constexpr (PANELS > 1) _tile_stored(1, out + PANEL, stride * 4);
    if constexpr (ROWS > 1) _tile_stored(2, out + PANEL * stride, stride * 4);
    if constexpr (ROWS > 1 && PANELS > 1) _tile_stored(3, out + PANEL * stride + PANEL, stride * 4);
}

template <class Format, int PANELS>
void tile_panels(const Matrix& m, const uint16_t* x, bool rest, int blocks, int first, bool add, int products, float* out, size_t stride) {
    alignas(64) uint16_t unpacked[PANELS * UNPACKED * 2 * TILE];
    const int all = depth_tiles(m.inputs), parts = (all + UNPACKED - 1) / UNPACKED;
    const size_t x_step = (1 + rest) * TILE, x_across = all * x_step, w_step = (1 + (products > 2)) * TILE;
    for (int part = 0, begin = 0; part < parts; part++) {
        const int depth = (all - begin + parts - part - 1) / (parts - part);
        for (int p = 0; p < PANELS; p++) {
            Format w(m.data, m.scales, m.leasts, first + p, m.inputs);
            for (int k = 0; k < depth; k++) unpack(w, (begin + k) * DEPTH, m.inputs, products > 2, unpacked + (p * depth + k) * w_step);
        }
        const Tiles weights = {unpacked, w_step, depth * w_step};
        for (int b = 0; b < blocks; b += 2) {
            const Tiles rows = {x + b * x_across + begin * x_step, x_step, x_across};
            float* to = out + b * PANEL * stride;
            if (b + 1 < blocks) tile_block<2, PANELS>(rows, weights, depth, begin == 0 && !add, products, to, stride);
            else tile_block<1, PANELS>(rows, weights, depth, begin == 0 && !add, products, to, stride);
        }
        begin += depth;
    }
}

template <class Format>
void tile_panels_of(const Matrix& m, const uint16_t* x, int blocks, int first, int count, bool add, int products, float* out, size_t stride) {
    // Weights in bfloat16 have no remainders.
    const int needed = std::is_same<Format, BFloat16>::value && products > 2 ? 2 : products;
    if (count == 2) tile_panels<Format, 2>(m, x, products > 1, blocks, first, add, needed, out, stride);
    else tile_panels<Format, 1>(m, x, products > 1, blocks, first, add, needed, out, stride);
}

// out [16 * blocks, stride] = rows of packed x times the panels first ... first + count (1 or 2) of m, or += with `add`, by 1 or 3
// products. `out` begins at the first panel's outputs.
void multiply_tiles(const Matrix& m, const uint16_t* x, int blocks, int first, int count, bool add, int products, float* out, size_t stride) {
    if (m.format == 0) tile_panels_of<Float32>(m, x, blocks, first, count, add, products, out, stride);
    if (m.format == 1) tile_panels_of<BFloat16>(m, x, blocks, first, count, add, products, out, stride);
    if (m.format == 2) tile_panels_of<Int8>(m, x, blocks, first, count, add, products, out, stride);
    if (m.format == 3) tile_panels_of<Int4>(m, x, blocks, first, count, add, products, out, stride);
}

}  // namespace
#else
namespace {

constexpr int TILE = 0;
inline bool may_use_tiles() { return false; }
inline void begin_tiles() {}
inline void end_tiles() {}
inline int depth_tiles(int) { return 0; }
inline void pack_rows(const float*, int, int, int, bool, uint16_t*) {}
inline void multiply_tiles(const Matrix&, const uint16_t*, int, int, int, bool, int, float*, size_t) {}

}  // namespace
#endif
