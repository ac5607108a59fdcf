// Lets a test draw another order of blocks and threads.
#include "device.h"

extern "C" __attribute__((visibility("default"))) void fastvq_shuffle(unsigned seed) {
  emulated::order.seed(seed);
}
