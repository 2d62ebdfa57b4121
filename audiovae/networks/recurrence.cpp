// The loop over time of recurrence.py, forward and backward, on the CPU. Every tensor is [frame, batch, size] and
// contiguous. What has n_frames + 1 rows (latents, states, cells) starts with zeros: row t is the value before frame t.
// The backward loop forms the gradients of all layers' outputs ("deltas") only; the caller makes those of the weights from
// them, in one matrix product each over all frames.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// ---- functions of one number ----------------------------------------------------------------------------------------

inline double exp_minus_1(double x) { return std::expm1(x); }

// exp(x) - less = 2^n (1 + p(r)) - less with x = n log 2 + r and the Taylor series p(r) of exp(r) - 1: exact to rounding
// for a `less` of 0 or 1, and vectorised by the compiler where the library's is not. NaN stays NaN.
inline float exp_minus(float x, float less) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float n = (x * 1.44269504f + rounder) - rounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 1.0f / 2;
  p = (p * r) * r + r;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return power * p + (power - less);
}

inline float exp_minus_1(float x) { return exp_minus(x, 1.0f); }

inline double exponential(double x) { return std::exp(x); }

inline float exponential(float x) { return exp_minus(x, 0.0f); }

template <typename Number>
inline Number sigmoid(Number x) {
  return 1 / (2 + exp_minus_1(-x));
}

inline double hyperbolic_tangent(double x) { return std::tanh(x); }

inline float hyperbolic_tangent(float x) {
  x = x < -20.0f ? -20.0f : x;
  x = x > 20.0f ? 20.0f : x;
  const float m = exp_minus_1(2 * x);
  return m / (m + 2);
}

// ---- functions of one frame, row by row -----------------------------------------------------------------------------

template <typename Function>
void for_rows(int64_t n_rows, int64_t width, const Function& function) {
  at::parallel_for(0, n_rows, std::max<int64_t>(1, 8192 / width), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) function(row);
  });
}

// What a layer adds to its matrix product: a bias, the same for all rows, or a drive.
template <typename Number>
const Number* row_of(const Tensor& term, int64_t row) {
  const Number* data = term.const_data_ptr<Number>();
  return term.dim() == 1 ? data : data + row * term.size(1);
}

// value <- tanh(value + term)
template <typename Number>
void add_tanh(const Tensor& value, const Tensor& term) {
  const int64_t width = value.size(1);
  Number* const values = value.data_ptr<Number>();
  for_rows(value.size(0), width, [=, &term](int64_t row) {
    Number* const y = values + row * width;
    const Number* const b = row_of<Number>(term, row);
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) y[j] = hyperbolic_tangent(y[j] + b[j]);
  });
}

// delta <- delta (1 - y^2), y = tanh(...)
template <typename Number>
void tanh_backward(const Tensor& delta, const Tensor& activation) {
  Number* const d = delta.data_ptr<Number>();
  const Number* const y = activation.const_data_ptr<Number>();
  for_rows(delta.size(0), delta.size(1), [=, width = delta.size(1)](int64_t row) {
#pragma GCC ivdep
    for (int64_t j = row * width; j < (row + 1) * width; j++) d[j] *= 1 - y[j] * y[j];
  });
}

// gates: in, W u + W h; out, the four gates. c = f c_before + i g; h = o tanh(c).
template <typename Number>
void lstm_step(
    const Tensor& gates, const Tensor& bias, const std::optional<Tensor>& drive, const Tensor& cell_before, const Tensor& cell,
    const Tensor& state) {
  const int64_t width = state.size(1);
  Number* const gate_data = gates.data_ptr<Number>();
  const Number* const b = bias.const_data_ptr<Number>();
  const Number* const drive_data = drive ? drive->const_data_ptr<Number>() : nullptr;
  const Number* const before_data = cell_before.const_data_ptr<Number>();
  Number* const cell_data = cell.data_ptr<Number>();
  Number* const state_data = state.data_ptr<Number>();
  for_rows(state.size(0), 4 * width, [=](int64_t row) {
    Number *const i = gate_data + 4 * row * width, *const f = i + width, *const g = f + width, *const o = g + width;
    const Number* const before = before_data + row * width;
    Number *const c = cell_data + row * width, *const h = state_data + row * width;
    if (drive_data) {
      const Number* const a = drive_data + 4 * row * width;
#pragma GCC ivdep
      for (int64_t j = 0; j < 4 * width; j++) i[j] += a[j];
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) {
      i[j] = sigmoid(i[j] + b[j]);
      f[j] = sigmoid(f[j] + b[j + width]);
      g[j] = hyperbolic_tangent(g[j] + b[j + 2 * width]);
      o[j] = sigmoid(o[j] + b[j + 3 * width]);
      c[j] = f[j] * before[j] + i[j] * g[j];
      h[j] = o[j] * hyperbolic_tangent(c[j]);
    }
  });
}

// grad_cell: in, dL/dc from the next frame; out, dL/dc_before. deltas: gradient of the gates before their nonlinearities.
template <typename Number>
void lstm_backward_step(
    const Tensor& gates, const Tensor& cell_before, const Tensor& cell, const Tensor& grad_state, const Tensor& grad_output,
    const Tensor& grad_cell, const Tensor& deltas) {
  const int64_t width = cell.size(1);
  const Number* const gate_data = gates.const_data_ptr<Number>();
  const Number* const before_data = cell_before.const_data_ptr<Number>();
  const Number* const cell_data = cell.const_data_ptr<Number>();
  const Number* const grad_state_data = grad_state.const_data_ptr<Number>();
  const Number* const grad_output_data = grad_output.const_data_ptr<Number>();
  Number* const grad_cell_data = grad_cell.data_ptr<Number>();
  Number* const delta_data = deltas.data_ptr<Number>();
  for_rows(cell.size(0), 4 * width, [=](int64_t row) {
    const Number *const i = gate_data + 4 * row * width, *const f = i + width, *const g = f + width, *const o = g + width;
    const Number *const before = before_data + row * width, *const c = cell_data + row * width;
    const Number *const dh = grad_state_data + row * width, *const dy = grad_output_data + row * width;
    Number* const dc = grad_cell_data + row * width;
    Number *const di = delta_data + 4 * row * width, *const df = di + width, *const dg = df + width, *const do_ = dg + width;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) {
      const Number tanh_c = hyperbolic_tangent(c[j]);
      const Number grad_h = dh[j] + dy[j];
      const Number grad_c = dc[j] + grad_h * o[j] * (1 - tanh_c * tanh_c);
      di[j] = grad_c * g[j] * i[j] * (1 - i[j]);
      df[j] = grad_c * before[j] * f[j] * (1 - f[j]);
      dg[j] = grad_c * i[j] * (1 - g[j] * g[j]);
      do_[j] = grad_h * tanh_c * o[j] * (1 - o[j]);
      dc[j] = grad_c * f[j];
    }
  });
}

// The scale from the last layer's spread: largest sigmoid(spread) + smallest, or exp(spread / 2) cut to smallest .. largest.
template <typename Number, bool is_exponential>
inline Number scale_of(Number spread, Number smallest, Number largest) {
  if constexpr (!is_exponential) return largest * sigmoid(spread) + smallest;
  Number scale = exponential(spread / 2);
  scale = scale < smallest ? smallest : scale;
  return scale > largest ? largest : scale;
}

// d scale / d spread, from the scale
template <typename Number, bool is_exponential>
inline Number scale_slope(Number scale, Number smallest, Number largest) {
  if constexpr (is_exponential) return scale > smallest && scale < largest ? scale / 2 : Number(0);
  const Number part = scale - smallest;  // largest sigmoid(spread)
  return part * (1 - part / largest);
}

// loc, spread = value + term; latent = loc + scale noise
template <typename Number, bool is_exponential>
void sample_step(
    const Tensor& value, const Tensor& term, const Tensor& noise, Number smallest, Number largest, const Tensor& loc,
    const Tensor& scale, const Tensor& latent) {
  const int64_t width = latent.size(1);
  const Number* const value_data = value.const_data_ptr<Number>();
  const Number* const noise_data = noise.const_data_ptr<Number>();
  Number* const loc_data = loc.data_ptr<Number>();
  Number* const scale_data = scale.data_ptr<Number>();
  Number* const latent_data = latent.data_ptr<Number>();
  for_rows(latent.size(0), width, [=, &term](int64_t row) {
    const Number* const v = value_data + 2 * row * width;
    const Number* const b = row_of<Number>(term, row);
    const Number* const e = noise_data + row * width;
    Number *const m = loc_data + row * width, *const s = scale_data + row * width, *const z = latent_data + row * width;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) {
      m[j] = v[j] + b[j];
      s[j] = scale_of<Number, is_exponential>(v[j + width] + b[j + width], smallest, largest);
      z[j] = m[j] + s[j] * e[j];
    }
  });
}

// deltas: gradient of loc and spread. carry: dL/dz from the next frame.
template <typename Number, bool is_exponential>
void sample_backward_step(
    const Tensor& grad_latent, const Tensor& carry, const Tensor& grad_loc, const Tensor& grad_scale, const Tensor& noise,
    const Tensor& scale, Number smallest, Number largest, const Tensor& deltas) {
  const int64_t width = scale.size(1);
  const Number* const grad_latent_data = grad_latent.const_data_ptr<Number>();
  const Number* const carry_data = carry.const_data_ptr<Number>();
  const Number* const grad_loc_data = grad_loc.const_data_ptr<Number>();
  const Number* const grad_scale_data = grad_scale.const_data_ptr<Number>();
  const Number* const noise_data = noise.const_data_ptr<Number>();
  const Number* const scale_data = scale.const_data_ptr<Number>();
  Number* const delta_data = deltas.data_ptr<Number>();
  for_rows(scale.size(0), width, [=](int64_t row) {
    const int64_t start = row * width;
    const Number *const dz = grad_latent_data + start, *const dn = carry_data + start, *const dm = grad_loc_data + start;
    const Number *const ds = grad_scale_data + start, *const e = noise_data + start, *const s = scale_data + start;
    Number* const d = delta_data + 2 * start;
#pragma GCC ivdep
    for (int64_t j = 0; j < width; j++) {
      const Number grad = dz[j] + dn[j];
      d[j] = dm[j] + grad;
      d[j + width] = (ds[j] + grad * e[j]) * scale_slope<Number, is_exponential>(s[j], smallest, largest);
    }
  });
}

// ---- loops ----------------------------------------------------------------------------------------------------------

// Row t of a buffer; one with fewer rows is used over and over, where nothing is kept for a backward pass.
Tensor row(const Tensor& buffer, int64_t t) { return buffer.select(0, t % buffer.size(0)); }

// out <- x W^T
void product(const Tensor& out, const Tensor& x, const Tensor& weight) {
  Tensor target = out;
  at::mm_out(target, x, weight.t());
}

// out <- delta W
void product_backward(const Tensor& out, const Tensor& delta, const Tensor& weight) {
  Tensor target = out;
  at::mm_out(target, delta, weight);
}

void add_product(const Tensor& out, const Tensor& x, const Tensor& weight) {
  Tensor target = out;
  at::addmm_out(target, out, x, weight.t());
}

// layers_in, layers_out: weight, bias, weight, bias, ...; lstm: nothing, or input weight, state weight, bias.
// Returns latents, loc, scale, states, cells, gates, and the activations of the layers in and out.
Tensors recurrence_forward(
    const Tensor& drive, const Tensor& noise, const std::optional<Tensor>& input_drive, const Tensors& layers_in,
    const Tensors& lstm, const Tensor& mixer, const Tensors& layers_out, double smallest, double largest, bool exponential, bool keep) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const int64_t n_frames = drive.size(0), n_batch = drive.size(1), latent_dim = noise.size(2);
  const int64_t width = lstm.empty() ? 0 : lstm[1].size(1), n_kept = keep ? n_frames : 1;
  const auto buffer = [&](int64_t n_rows, int64_t size) { return at::empty({n_rows, n_batch, size}, drive.options()); };

  Tensor latents = buffer(n_frames + 1, latent_dim), loc = buffer(n_frames, latent_dim), scale = buffer(n_frames, latent_dim);
  Tensor states = buffer(n_frames + 1, width), cells = buffer(n_kept + 1, width), gates = buffer(n_kept, 4 * width);
  latents[0].zero_();
  states[0].zero_();
  cells[0].zero_();
  Tensors hidden_in, hidden_out;
  for (size_t k = 0; k < layers_in.size(); k += 2) hidden_in.push_back(buffer(n_kept, layers_in[k].size(0)));
  for (size_t k = 0; k < layers_out.size(); k += 2) hidden_out.push_back(buffer(n_kept, layers_out[k].size(1)));
  const Tensor last = at::empty({n_batch, 2 * latent_dim}, drive.options());

  AT_DISPATCH_FLOATING_TYPES(drive.scalar_type(), "recurrence_forward", [&] {
    const auto sample = exponential ? sample_step<scalar_t, true> : sample_step<scalar_t, false>;
    for (int64_t t = 0; t < n_frames; t++) {
      Tensor value = latents[t];
      for (size_t k = 0; k < hidden_in.size(); k++) {
        const Tensor next = row(hidden_in[k], t);
        product(next, value, layers_in[2 * k]);
        add_tanh<scalar_t>(next, layers_in[2 * k + 1]);
        value = next;
      }
      if (!lstm.empty()) {
        const Tensor gate = row(gates, t), state = states[t + 1];
        product(gate, value, lstm[0]);
        if (t > 0) add_product(gate, states[t], lstm[1]);
        const auto extra = input_drive ? std::make_optional(input_drive->select(0, t)) : std::nullopt;
        lstm_step<scalar_t>(gate, lstm[2], extra, row(cells, t), row(cells, t + 1), state);
        value = state;
      }
      Tensor term = drive[t];
      Tensor weight = mixer;
      for (size_t k = 0; k < hidden_out.size(); k++) {
        const Tensor next = row(hidden_out[k], t);
        product(next, value, weight);
        add_tanh<scalar_t>(next, term);
        value = next;
        weight = layers_out[2 * k];
        term = layers_out[2 * k + 1];
      }
      product(last, value, weight);
      sample(last, term, noise[t], smallest, largest, loc[t], scale[t], latents[t + 1]);
    }
  });
  Tensors outputs = {latents, loc, scale, states, cells, gates};
  outputs.insert(outputs.end(), hidden_in.begin(), hidden_in.end());
  outputs.insert(outputs.end(), hidden_out.begin(), hidden_out.end());
  return outputs;
}

// grads: of latents, loc, scale and states, n_frames rows each; kept: what recurrence_forward returned.
// Returns the deltas of the gates, of the layers in, and of the mixer and the layers out.
Tensors recurrence_backward(
    const Tensors& grads, const Tensors& kept, const Tensor& noise, const Tensors& layers_in, const Tensors& lstm,
    const Tensor& mixer, const Tensors& layers_out, double smallest, double largest, bool exponential) {
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const Tensor &scale = kept[2], &cells = kept[4], &gates = kept[5];
  const size_t n_in = layers_in.size() / 2, n_out = layers_out.size() / 2;
  const Tensor *const hidden_in = kept.data() + 6, *const hidden_out = hidden_in + n_in;
  const int64_t n_frames = noise.size(0), n_batch = noise.size(1), latent_dim = noise.size(2);
  const int64_t width = lstm.empty() ? 0 : lstm[1].size(1);
  const auto buffer = [&](int64_t size) { return at::empty({n_frames, n_batch, size}, noise.options()); };

  Tensors deltas = {buffer(4 * width)};
  for (size_t k = 0; k < n_in; k++) deltas.push_back(buffer(layers_in[2 * k].size(0)));
  deltas.push_back(buffer(mixer.size(0)));
  for (size_t k = 0; k < n_out; k++) deltas.push_back(buffer(layers_out[2 * k].size(0)));
  const Tensor *const deltas_in = deltas.data() + 1, *const deltas_out = deltas_in + n_in;

  const auto zeros = [&](int64_t size) { return at::zeros({n_batch, size}, noise.options()); };
  const Tensor carry = zeros(latent_dim), grad_state = zeros(width), grad_cell = zeros(width), grad_mixed = zeros(mixer.size(1));

  AT_DISPATCH_FLOATING_TYPES(noise.scalar_type(), "recurrence_backward", [&] {
    const auto sample_backward = exponential ? sample_backward_step<scalar_t, true> : sample_backward_step<scalar_t, false>;
    for (int64_t t = n_frames - 1; t >= 0; t--) {
      sample_backward(
          grads[0][t], carry, grads[1][t], grads[2][t], noise[t], scale[t], smallest, largest, deltas_out[n_out][t]);
      for (size_t k = n_out; k > 0; k--) {
        const Tensor delta = deltas_out[k - 1][t];
        product_backward(delta, deltas_out[k][t], layers_out[2 * k - 2]);
        tanh_backward<scalar_t>(delta, hidden_out[k - 1][t]);
      }
      // gradient of r_t; then, through the LSTM, of u_t
      const bool direct = lstm.empty();
      const Tensor grad_u = n_in > 0 ? deltas_in[n_in - 1][t] : carry;
      product_backward(direct ? grad_u : grad_mixed, deltas_out[0][t], mixer);
      if (!direct) {
        const Tensor delta = deltas[0][t];
        grad_mixed.add_(grads[3][t]);
        lstm_backward_step<scalar_t>(gates[t], cells[t], cells[t + 1], grad_state, grad_mixed, grad_cell, delta);
        product_backward(grad_u, delta, lstm[0]);
        if (t > 0) product_backward(grad_state, delta, lstm[1]);
      }
      for (size_t k = n_in; k > 0; k--) {
        tanh_backward<scalar_t>(deltas_in[k - 1][t], hidden_in[k - 1][t]);
        product_backward(k > 1 ? deltas_in[k - 2][t] : carry, deltas_in[k - 1][t], layers_in[2 * k - 2]);
      }
    }
  });
  return deltas;
}

}  // namespace

TORCH_LIBRARY(audiovae, library) {
  library.def(
      "recurrence_forward(Tensor drive, Tensor noise, Tensor? input_drive, Tensor[] layers_in, Tensor[] lstm, Tensor mixer, "
      "Tensor[] layers_out, float smallest, float largest, bool exponential, bool keep) -> Tensor[]");
  library.def(
      "recurrence_backward(Tensor[] grads, Tensor[] kept, Tensor noise, Tensor[] layers_in, Tensor[] lstm, Tensor mixer, "
      "Tensor[] layers_out, float smallest, float largest, bool exponential) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(audiovae, CPU, library) {
  library.impl("recurrence_forward", recurrence_forward);
  library.impl("recurrence_backward", recurrence_backward);
}
