// One step of a Llama 3 model on a CPU. A row is a token at a position of some sequence.
//
// Every row writes its key and value into the cache's blocks, then attends to its own sequence up to its own position. Products with
// rows of prompts may use the matrix unit (tiles.h), products with rows of replies never do. Every number is summed in an order that
// depends only on its row. So results are bitwise the same whatever else is in the batch and however a prompt was cut into steps.

#include <omp.h>

#include "attention.h"

namespace {

void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    vec sum = {};
    for (int i = 0; i < size; i += LANES) sum += load(x + i) * load(x + i);
    const float scale = 1.0f / std::sqrt(total(sum) / size + eps);
    for (int i = 0; i < size; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
}

struct Layer {
    Matrix wqkv, wo, w1, w3, w2;
    const float *attention_norm, *ffn_norm;
};

struct Model {
    int32_t dim, layers, heads, kv_heads, head_dim, ffn, block;  // ffn padded to whole panels
    int32_t products;                                            // of bfloat16 tiles for one of prompts' rows, 1 or 3; 0: no tiles
    float eps;
    const Layer* layer;
    const float *norm, *rope;  // rope [positions][head_dim / 2][cos, sin]
    Matrix head;
    float *keys, *values;  // [layers][blocks][kv_heads][head_dim][block], [layers][blocks][kv_heads][block][head_dim]
    int64_t layer_size;    // floats of one layer of keys, or of values
};

// gate = silu(gate) * up, for `count` neighbouring numbers.
void swiglu(float* gate, const float* up, int count) {
    for (int i = 0; i < count; i += LANES) {
        vec g = load(gate + i), e = exponential(g < 0 ? g : -g);
        store(gate + i, load(up + i) * g * (g < 0 ? e : vec{} + 1.0f) / (1.0f + e));
    }
}

// The matrix products of one step. All threads of an OpenMP team call each method, which divides its work among them. The first
// `replies` rows are multiplied by vector instructions, the rows of prompts that follow on tiles.
struct Products {
    int rows, replies, products;
    uint16_t *packed, *packed_gate;  // the prompts' rows in bfloat16: inputs of the next products; inputs of the product with w2

    int blocks() const { return (rows - replies + PANEL - 1) / PANEL; }
    size_t tiles_of(int inputs) const { return (size_t)depth_tiles(inputs) * (1 + (products > 1)) * TILE; }

    void pack(const float* x, int inputs) const {
#pragma omp for schedule(static)
        for (int b = 0; b < blocks(); b++) {
            const int first = replies + b * PANEL;
            pack_rows(x + (size_t)first * inputs, inputs, rows - first, inputs, products > 1, packed + b * tiles_of(inputs));
        }
    }

    // out [rows, stride] = x m, or += with `add`. The rows of prompts are read from `packed` instead of x.
    void multiply_by(const Matrix& m, const float* x, const uint16_t* packed, float* out, int stride, bool add) const {
        const int panels = m.outputs / PANEL, at_once = add ? 2 : 4;
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

    // The feed-forward's first half, silu(x w1) * (x w3): into gate [replies, stride] for replies, and into `packed_gate` for
    // prompts. `gates` and `ups` are scratch memory of this thread, 32 floats for each row of a prompt.
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

// Whether this machine has a matrix unit (AMX) for the rows of prompts.
extern "C" int tenfold_tiles() { return may_use_tiles(); }

// Turns the embedded rows `x` [rows, dim] into the last hidden states after the final norm, in place. Row r is at positions[r] of
// the sequence whose block table begins at tables[starts[r]]. The first `replies` rows belong to replies, the others to prompts.
//
// `x` and `scratch` have room for 15 further rows; `scratch` has dim + qkv + heads * head_dim + 2 * ffn + 64 * threads floats a row.
// `packed` and `packed_gate` have room for two bfloat16 copies of the widest input, padded to 32, for every row, padded to 16.
extern "C" void tenfold_forward(const Model* m, int rows, int replies, float* x, const int32_t* positions, const int32_t* tables,
                                const int32_t* starts, float* scratch, uint16_t* packed, uint16_t* packed_gate, int threads) {
    const int D = m->head_dim, group = m->heads / m->kv_heads, span = (group + 2) * D, B = m->block;
    const int qkv_stride = m->layer[0].wqkv.outputs, mixed_size = m->heads * D;
    const size_t room = rows + PANEL - 1;
    float *normed = scratch, *qkv = normed + room * m->dim, *mixed = qkv + room * qkv_stride;
    float *gate = mixed + room * mixed_size, *up = gate + room * m->ffn, *own = up + room * m->ffn;
    const Products products = {rows, replies, m->products, packed, packed_gate};
    const std::vector<Run> runs = runs_of(0, replies, MAX_ROWS, positions, starts);
    const std::vector<Run> prompts = runs_of(replies, rows, MOST_TOGETHER, positions, starts);

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

            auto cached = [&](int r, int kv) { return Cached{keys, values, tables + starts[r], m->kv_heads, kv, D, B}; };
#pragma omp for schedule(dynamic) collapse(2) nowait
            for (size_t n = 0; n < runs.size(); n++)
                for (int kv = 0; kv < m->kv_heads; kv++) {
                    const auto [r, count] = runs[n];
                    attend_rows(cached(r, kv), count, group, positions[r], qkv + (size_t)r * qkv_stride + kv * span, qkv_stride,
                                mixed + (size_t)r * mixed_size + kv * group * D, mixed_size);
                }
#pragma omp for schedule(dynamic) collapse(2)
            for (size_t n = 0; n < prompts.size(); n++)
                for (int kv = 0; kv < m->kv_heads; kv++) {
                    const auto [r, count] = prompts[prompts.size() - 1 - n];  // the longest first
                    attend_tiles(cached(r, kv), count, group, positions[r], m->products, qkv + (size_t)r * qkv_stride + kv * span,
                                 qkv_stride, mixed + (size_t)r * mixed_size + kv * group * D, mixed_size);
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
