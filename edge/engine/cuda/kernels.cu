// Both ends of the loop on the GPU: counts of a camera -> network input (prepare_*), network output -> counts (deliver_*).
//
// No headers, no shared memory, no barriers: NVRTC compiles this file on the device, and the tests compile the very same
// file for the host and hold it against numpy. A thread takes four pixels in a row, as one load and one store where the
// rows begin on their boundaries: mapped memory of a Jetson is not cached on the GPU, so each byte is asked for once.
//
// A row of a packed format begins on a byte. Colour becomes one channel, because the networks take one, and that channel
// is green: the networks know the point spread function at one wavelength, near 550 nm, and a mix with red and blue would
// blend three of them. At the red and blue sites of a Bayer mosaic it is the mean of the green neighbours inside the frame.

typedef unsigned char u8;
typedef unsigned short u16;

template <class T, int COUNT, int ALIGNMENT>
struct alignas(ALIGNMENT) Pack {
  T v[COUNT];
};
typedef Pack<float, 4, 16> Float4;

// Where counts come from: `at` reads one pixel; `four` reads four from x on, a multiple of 4 in a width that is one.
struct Frame {
  const u8* counts;
  int pitch, w, h;  // bytes from row to row; pixels
};

template <class T>
struct Mono {
  static __device__ float at(const Frame& f, int x, int y) {
    return reinterpret_cast<const T*>(f.counts + (long long)y * f.pitch)[x];
  }
  static __device__ void four(const Frame& f, int x, int y, Float4& out) {
    typedef Pack<T, 4, 4 * sizeof(T)> Counts4;
    const Counts4 in = reinterpret_cast<const Counts4*>(f.counts + (long long)y * f.pitch)[x / 4];
    for (int i = 0; i < 4; ++i) out.v[i] = in.v[i];
  }
};

// GenICam PFNC "p": a stream of bits, least significant first. Ten or twelve bits never touch a third byte.
template <int BITS>
struct Packed {
  static __device__ float unpack(const u8* row, int x) {
    const int bit = x * BITS;
    return (row[bit / 8] | row[bit / 8 + 1] << 8) >> bit % 8 & ((1 << BITS) - 1);
  }
  static __device__ float at(const Frame& f, int x, int y) { return unpack(f.counts + (long long)y * f.pitch, x); }
  static __device__ void four(const Frame& f, int x, int y, Float4& out) {
    const u8* in = f.counts + (long long)y * f.pitch + x / 4 * (BITS / 2);
    u8 row[BITS / 2];  // four pixels are 5 or 6 bytes
    for (int i = 0; i < BITS / 2; ++i) row[i] = in[i];
    for (int i = 0; i < 4; ++i) out.v[i] = unpack(row, i);
  }
};

template <class Source>
struct OneByOne {
  static __device__ void four(const Frame& f, int x, int y, Float4& out) {
    for (int i = 0; i < 4; ++i) out.v[i] = Source::at(f, x + i, y);
  }
};

// GREEN: whether x + y of a green site is even (0: the first pixel is green) or odd (1: it is red or blue).
template <int GREEN>
struct Bayer : OneByOne<Bayer<GREEN>> {
  static __device__ float at(const Frame& f, int x, int y) {
    const u8* p = f.counts + (long long)y * f.pitch + x;
    if ((x + y) % 2 == GREEN) return *p;
    int sum = 0, sites = 0;
    if (x > 0) sum += p[-1], ++sites;
    if (x + 1 < f.w) sum += p[1], ++sites;
    if (y > 0) sum += p[-f.pitch], ++sites;
    if (y + 1 < f.h) sum += p[f.pitch], ++sites;
    return (float)sum / (float)sites;
  }
};

struct Rgb8 : OneByOne<Rgb8> {
  static __device__ float at(const Frame& f, int x, int y) { return f.counts[(long long)y * f.pitch + 3 * x + 1]; }
};

// (counts - dark) / flat * scale, in numpy's order; dark and flat may be null.
static __device__ float correct(float count, const float* dark, const float* flat, long long at, float scale) {
  if (dark) count -= dark[at];
  if (flat) count /= flat[at];
  return count * scale;
}

template <class Source>
static __device__ void prepare(Frame f, const float* dark, const float* flat, float* out, float scale) {
  const int x = 4 * (blockIdx.x * blockDim.x + threadIdx.x), y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= f.w || y >= f.h) return;
  const long long at = (long long)y * f.w + x;
  if (f.w % 4 == 0) {
    Float4 four;
    Source::four(f, x, y, four);
    for (int i = 0; i < 4; ++i) four.v[i] = correct(four.v[i], dark, flat, at + i, scale);
    *reinterpret_cast<Float4*>(out + at) = four;
  } else {
    for (int i = 0; i < 4 && x + i < f.w; ++i)
      out[at + i] = correct(Source::at(f, x + i, y), dark, flat, at + i, scale);
  }
}

// Counts of 0..1, rounded half to even. The graph ends in a clamp; whatever it leaves stays a count: NaN becomes 0.
static __device__ float count_of(float value, float full_scale) {
  return rintf(fminf(fmaxf(value * full_scale, 0.0f), full_scale));
}

// Planes of `pixels` values each -> counts, the channels of a pixel side by side.
template <class T, int CHANNELS>
static __device__ void deliver(const float* planes, T* out, int pixels, float full_scale) {
  const long long at = 4LL * (blockIdx.x * blockDim.x + threadIdx.x);
  if (at >= pixels) return;
  if (pixels % 4 == 0) {
    typedef Pack<T, 4 * CHANNELS, 4 * sizeof(T)> Counts;
    Counts four;
    for (int c = 0; c < CHANNELS; ++c) {
      const Float4 in = *reinterpret_cast<const Float4*>(planes + (long long)c * pixels + at);
      for (int i = 0; i < 4; ++i) four.v[i * CHANNELS + c] = (T)count_of(in.v[i], full_scale);
    }
    *reinterpret_cast<Counts*>(out + at * CHANNELS) = four;
  } else {
    for (long long i = at; i < at + 4 && i < pixels; ++i)
      for (int c = 0; c < CHANNELS; ++c)
        out[i * CHANNELS + c] = (T)count_of(planes[(long long)c * pixels + i], full_scale);
  }
}

#define PREPARE(NAME, ...)                                                                                     \
  extern "C" __global__ void NAME(const u8* counts, int pitch, const float* dark, const float* flat, float* out, \
                                  int w, int h, float scale) {                                                 \
    prepare<__VA_ARGS__>(Frame{counts, pitch, w, h}, dark, flat, out, scale);                                  \
  }
PREPARE(prepare_mono8, Mono<u8>)
PREPARE(prepare_mono10p, Packed<10>)
PREPARE(prepare_mono12p, Packed<12>)
PREPARE(prepare_mono16, Mono<u16>)
PREPARE(prepare_bayer_rg8, Bayer<1>)
PREPARE(prepare_bayer_bg8, Bayer<1>)
PREPARE(prepare_bayer_gr8, Bayer<0>)
PREPARE(prepare_bayer_gb8, Bayer<0>)
PREPARE(prepare_rgb8, Rgb8)

#define DELIVER(NAME, T, CHANNELS)                                                                 \
  extern "C" __global__ void NAME(const float* planes, T* out, int pixels, float full_scale) {     \
    deliver<T, CHANNELS>(planes, out, pixels, full_scale);                                         \
  }
DELIVER(deliver_grey8, u8, 1)
DELIVER(deliver_grey16, u16, 1)
DELIVER(deliver_rgb8, u8, 3)
DELIVER(deliver_rgb16, u16, 3)
