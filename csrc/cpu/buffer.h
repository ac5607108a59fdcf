// SPDX-License-Identifier: Apache-2.0
// Scratch memory: uninitialised, aligned to a cache line, freed with its owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastvq {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(sizeof(T) * static_cast<size_t>(size), kAlignment))) {}

  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace fastvq
