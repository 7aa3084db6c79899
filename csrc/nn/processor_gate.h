#pragma once

namespace sdengine::nn {

// Says how many threads the networks of this process may compute with at the same time, whichever
// pools they are of. Those beyond wait, and pass in the order in which they came.
class ProcessorGate {
 public:
  // Threads that may compute at once from now on; 0, as at first, is any number.
  static void set_processors(int threads);

  // Lets so many threads compute while it lives; more than there may be do so alone.
  class Pass {
   public:
    explicit Pass(int threads);
    ~Pass();
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    int threads_;
  };
};

}  // namespace sdengine::nn
