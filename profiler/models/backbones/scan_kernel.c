/* The chunk loops of scan_loops.py in single passes; compiled on first use by scan_kernel.py.

   One task is one sequence and one group of channels. Within a task sixteen channels (LANES) go
   through a chunk together with all their states, so decays, states and adjoints never leave the
   caches. Layouts and letters are those of scan_forward_op and scan_backward_op:
     u, delta, y, grad_y, d_u, d_delta [batch, length, inner]    b, c, d_b, d_c [batch, length, states, groups]
     rates, d_rates [states, inner]    skip, d_skip [inner]    states [chunks, batch, states, inner]
   A null pointer is a result that nobody wants. */

#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { LANES = 16, MAX_CHUNK = 32, MAX_STATES = 64 };
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
#define INLINE static inline __attribute__((always_inline))
#define LN_2 0.6931471805599453f
#define LOG2_E 1.4426950408889634f

typedef struct {
  int64_t batch, length, inner, states, groups, chunk, softplus, threads, scratch; /* floats of it per thread */
} sizes;

INLINE lanes all(float x) { return (lanes){} + x; }

INLINE lanes load(const float *p, int64_t n) {
  lanes x = {};
  if (n == LANES) memcpy(&x, p, sizeof x);
  else memcpy(&x, p, 4 * n);
  return x;
}

INLINE void store(float *p, lanes x, int64_t n) {
  if (n == LANES) memcpy(p, &x, sizeof x);
  else memcpy(p, &x, 4 * n);
}

INLINE lanes pick(ints mask, lanes yes, lanes no) {
  return (lanes)((mask & (ints)yes) | (~mask & (ints)no));
}

/* 2^x: nearest integer by adding 1.5 * 2^23, then the polynomial of Cephes' exp2f on [-1/2, 1/2].
   Below 2^-126 it is zero, above 2^127 it stays there, and not-a-number stays itself. */
INLINE lanes exp2_lanes(lanes x) {
  const lanes magic = all(12582912.f);
  const lanes bounded = pick(x > all(127.f), all(127.f), x);
  const lanes shifted = bounded + magic, f = bounded - (shifted - magic);
  lanes p = all(1.535336188319500e-4f);
  p = p * f + all(1.339887440266574e-3f);
  p = p * f + all(9.618437357674640e-3f);
  p = p * f + all(5.550332471162809e-2f);
  p = p * f + all(2.402264791363012e-1f);
  p = p * f + all(6.931472028550421e-1f);
  p = p * f + all(1.f);
  const lanes scaled = (lanes)((ints)p + (((ints)shifted - (ints)magic) << 23));
  return (lanes)((ints)scaled & ~(x < all(-126.f)));
}

/* Step sizes, and their derivative by what they come from: x and 1, or softplus and sigmoid.
   log1p(t) = 2 artanh(t / (2 + t)); the series is cut where its terms fall below 2e-8. */
INLINE lanes step_of(lanes x, int64_t softplus, lanes *slope) {
  if (!softplus) return *slope = all(1.f), x;
  const ints negative = x < all(0.f);
  const lanes t = exp2_lanes(pick(negative, x, -x) * all(LOG2_E));
  const lanes s = t / (t + all(2.f)), q = s * s;
  lanes p = all(1.f / 15);
  for (int k = 13; k >= 1; k -= 2) p = p * q + all(1.f / k);
  *slope = pick(negative, t, all(1.f)) / (t + all(1.f));
  return pick(negative, all(0.f), x) + all(2.f) * s * p;
}

INLINE float sum(lanes x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t whole(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

INLINE void forward_task(const sizes *z, int64_t row, int64_t group, const float *u, const float *delta,
                         const float *rates, const float *b, const float *c, const float *skip, float *y,
                         float *kept, float *scratch, const int64_t S) {
  const int64_t I = z->inner, width = I / z->groups, first = group * width;
  const int64_t sequence = row * z->length * I, weights = row * z->length * S * z->groups + group;
  memset(scratch, 0, 4 * S * whole(width));
  for (int64_t k = 0, from = 0; from < z->length; k++, from += z->chunk)
    for (int64_t at = 0; at < width; at += LANES) {
      const int64_t n = least(LANES, width - at), i = first + at;
      lanes h[MAX_STATES], rate[MAX_STATES], slope, *carry = (lanes *)(scratch + S * at);
      const lanes d = load(skip + i, n);
      for (int64_t s = 0; s < S; s++) {
        h[s] = carry[s], rate[s] = load(rates + s * I + i, n);
        if (kept) store(kept + ((k * z->batch + row) * S + s) * I + i, h[s], n);
      }
      for (int64_t t = from; t < least(from + z->chunk, z->length); t++) {
        const float *here_b = b + weights + t * S * z->groups, *here_c = c + weights + t * S * z->groups;
        const int64_t p = sequence + t * I + i;
        __builtin_prefetch(u + p + LANES), __builtin_prefetch(delta + p + LANES);
        const lanes x = load(u + p, n), step = step_of(load(delta + p, n), z->softplus, &slope), drive = step * x;
        lanes even = d * x, odd = all(0.f);
        for (int64_t s = 0; s < S; s++) {
          h[s] = exp2_lanes(step * rate[s]) * h[s] + drive * all(here_b[s * z->groups]);
          if (s % 2) odd += h[s] * all(here_c[s * z->groups]);
          else even += h[s] * all(here_c[s * z->groups]);
        }
        store(y + p, even + odd, n);
      }
      for (int64_t s = 0; s < S; s++) carry[s] = h[s];
    }
}

INLINE void backward_task(const sizes *z, int64_t row, int64_t group, const float *grad_y, const float *u,
                          const float *delta, const float *rates, const float *b, const float *c,
                          const float *skip, const float *kept, float *d_u, float *d_delta, float *d_b,
                          float *d_c, float *scratch, const int64_t S) {
  const int64_t I = z->inner, G = z->groups, width = I / G, first = group * width, chunks = (z->length - 1) / z->chunk;
  const int64_t sequence = row * z->length * I, weights = row * z->length * S * G + group;
  float *sum_rates = scratch, *sum_skip = sum_rates + S * I;
  float *carries = scratch + whole((S + 1) * I);
  lanes *decay = (lanes *)(carries + S * whole(width)), *h = decay + z->chunk * S;
  lanes *sum_b = h + (z->chunk + 1) * S, *sum_c = sum_b + z->chunk * S;
  memset(carries, 0, 4 * S * whole(width));
  for (int64_t k = chunks; k >= 0; k--) {
    const int64_t from = k * z->chunk, size = least(z->chunk, z->length - from);
    memset(sum_b, 0, 2 * z->chunk * S * sizeof(lanes));
    for (int64_t at = 0; at < width; at += LANES) {
      const int64_t n = least(LANES, width - at), i = first + at;
      lanes rate[MAX_STATES], d_rate[MAX_STATES], *carry = (lanes *)(carries + S * at);
      lanes step[MAX_CHUNK], slope[MAX_CHUNK], d_skip = load(sum_skip + i, n);
      const lanes d = load(skip + i, n);
      for (int64_t s = 0; s < S; s++) {
        rate[s] = load(rates + s * I + i, n), d_rate[s] = load(sum_rates + s * I + i, n);
        h[s] = load(kept + ((k * z->batch + row) * S + s) * I + i, n);
      }
      for (int64_t t = 0; t < size; t++) { /* states again; h[t + 1] is the state at t */
        const int64_t p = sequence + (from + t) * I + i;
        const float *here_b = b + weights + (from + t) * S * G;
        __builtin_prefetch(u + p + LANES), __builtin_prefetch(delta + p + LANES), __builtin_prefetch(grad_y + p + LANES);
        const lanes x = load(u + p, n), grad = load(grad_y + p, n);
        step[t] = step_of(load(delta + p, n), z->softplus, &slope[t]);
        const lanes drive = step[t] * x;
        d_skip += grad * x;
        for (int64_t s = 0; s < S; s++) {
          const lanes factor = exp2_lanes(step[t] * rate[s]);
          const lanes now = factor * h[t * S + s] + drive * all(here_b[s * G]);
          decay[t * S + s] = factor, h[(t + 1) * S + s] = now;
          sum_c[t * S + s] += now * grad;
        }
      }
      for (int64_t t = size - 1; t >= 0; t--) { /* adjoints; carry is decay[t + 1] * adjoint[t + 1] */
        const int64_t p = sequence + (from + t) * I + i;
        const float *here_b = b + weights + (from + t) * S * G, *here_c = c + weights + (from + t) * S * G;
        const lanes x = load(u + p, n), grad = load(grad_y + p, n), drive = step[t] * x;
        lanes d_step = all(0.f), d_drive = all(0.f);
        for (int64_t s = 0; s < S; s++) {
          const lanes adjoint = grad * all(here_c[s * G]) + carry[s];
          sum_b[t * S + s] += adjoint * drive;
          d_drive += adjoint * all(here_b[s * G]);
          carry[s] = adjoint * decay[t * S + s];
          const lanes d_exponent = carry[s] * h[t * S + s];
          d_step += d_exponent * rate[s], d_rate[s] += d_exponent * step[t];
        }
        if (d_u) store(d_u + p, d_drive * step[t] + d * grad, n);
        if (d_delta) store(d_delta + p, (d_step * all(LN_2) + d_drive * x) * slope[t], n);
      }
      store(sum_skip + i, d_skip, n);
      for (int64_t s = 0; s < S; s++) store(sum_rates + s * I + i, d_rate[s], n);
    }
    for (int64_t j = 0; j < size * S; j++) {
      if (d_b) d_b[weights + (from * S + j) * G] = sum(sum_b[j]);
      if (d_c) d_c[weights + (from * S + j) * G] = sum(sum_c[j]);
    }
  }
}

INLINE int64_t thread(void) {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

/* Floats of scratch for one thread. */
int64_t scan_scratch(const sizes *z, int backward) {
  const int64_t carry = z->states * whole(z->inner / z->groups);
  return backward ? whole((z->states + 1) * z->inner) + carry + (4 * z->chunk + 1) * z->states * LANES : carry;
}

int scan_takes(const sizes *z) { return z->states <= MAX_STATES && z->chunk <= MAX_CHUNK; }

/* Sixteen states are compiled apart, so that the loops over them unroll. */
void scan_forward(const sizes *z, const float *u, const float *delta, const float *rates, const float *b,
                  const float *c, const float *skip, float *y, float *kept, float *scratch) {
#pragma omp parallel for num_threads(z->threads) schedule(static)
  for (int64_t task = 0; task < z->batch * z->groups; task++) {
    const int64_t row = task / z->groups, group = task % z->groups;
    float *own = scratch + thread() * z->scratch;
    if (z->states == 16) forward_task(z, row, group, u, delta, rates, b, c, skip, y, kept, own, 16);
    else forward_task(z, row, group, u, delta, rates, b, c, skip, y, kept, own, z->states);
  }
}

void scan_backward(const sizes *z, const float *grad_y, const float *u, const float *delta, const float *rates,
                   const float *b, const float *c, const float *skip, const float *kept, float *d_u, float *d_delta,
                   float *d_rates, float *d_b, float *d_c, float *d_skip, float *scratch) {
  for (int64_t i = 0; i < z->threads; i++) memset(scratch + i * z->scratch, 0, 4 * (z->states + 1) * z->inner);
#pragma omp parallel for num_threads(z->threads) schedule(static)
  for (int64_t task = 0; task < z->batch * z->groups; task++) {
    const int64_t row = task / z->groups, group = task % z->groups;
    float *own = scratch + thread() * z->scratch;
    if (z->states == 16)
      backward_task(z, row, group, grad_y, u, delta, rates, b, c, skip, kept, d_u, d_delta, d_b, d_c, own, 16);
    else backward_task(z, row, group, grad_y, u, delta, rates, b, c, skip, kept, d_u, d_delta, d_b, d_c, own, z->states);
  }
  for (int64_t j = 0; j < (z->states + 1) * z->inner; j++) { /* rates first, then the skip */
    float total = 0;
    for (int64_t i = 0; i < z->threads; i++) total += scratch[i * z->scratch + j];
    if (j < z->states * z->inner) { if (d_rates) d_rates[j] = total * LN_2; }
    else if (d_skip) d_skip[j - z->states * z->inner] = total;
  }
}
