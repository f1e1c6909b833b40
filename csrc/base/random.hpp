// Random bits that depend on their place alone: Philox4x64-10 (Salmon, Moraes, Dror, Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Streams of different (key, counter) are
// independent, so that any thread can draw for any case.
#pragma once

#include <array>

#include "base/types.hpp"

namespace natgrad {

// A UniformRandomBitGenerator. Gives what numpy.random.Philox(counter=counter, key=key) gives:
// blocks of four words, of the counters after the given one. Its lowest word numbers the blocks and
// the other three name the stream.
class Philox {
 public:
  using result_type = std::uint64_t;
  using Counter = std::array<std::uint64_t, 4>;
  using Key = std::array<std::uint64_t, 2>;

  Philox(const Key& key, const Counter& counter) : key_(key), counter_(counter) {}
  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return ~result_type{0}; }

  result_type operator()() {
    if (used_ == block_.size()) {
      ++counter_[0];
      block_ = encrypt(key_, counter_);
      used_ = 0;
    }
    return block_[used_++];
  }

  // Uniform in [0, 1): the upper 53 bits of a word, as numpy's Generator.random().
  double uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }

 private:
  struct Product {
    std::uint64_t high, low;
  };

  static Product multiply(std::uint64_t a, std::uint64_t b) {
#ifdef __SIZEOF_INT128__
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return {static_cast<std::uint64_t>(product >> 64), static_cast<std::uint64_t>(product)};
#else
    constexpr std::uint64_t mask = 0xFFFFFFFF;
    const std::uint64_t low = (a & mask) * (b & mask), left = (a >> 32) * (b & mask),
                        right = (a & mask) * (b >> 32);
    const std::uint64_t middle = (low >> 32) + (left & mask) + (right & mask);
    return {(a >> 32) * (b >> 32) + (left >> 32) + (right >> 32) + (middle >> 32), a * b};
#endif
  }

  static Counter encrypt(Key key, Counter x) {
    for (int round = 0; round < 10; ++round) {
      const Product p = multiply(0xD2E7470EE14C6C93, x[0]), q = multiply(0xCA5A826395121157, x[2]);
      x = {q.high ^ x[1] ^ key[0], q.low, p.high ^ x[3] ^ key[1], p.low};
      key = {key[0] + 0x9E3779B97F4A7C15, key[1] + 0xBB67AE8584CAA73B};
    }
    return x;
  }

  Key key_;
  Counter counter_, block_{};
  std::size_t used_ = 4;
};

}  // namespace natgrad
