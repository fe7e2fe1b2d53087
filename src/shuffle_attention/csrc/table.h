// The kernels of one instruction set; included last by each isa_*.cpp, inside its namespace.

template <class T>
constexpr Kernels planes_of() {
  return {forward_planes<T>, backward_planes<T>, 1};
}

template <class T>
constexpr Kernels rows_of() {
  return {forward_rows<T>, backward_rows<T>, row_width<T>()};
}

constexpr KernelTable table = {{
    {planes_of<float>(), planes_of<double>(), planes_of<BFloat16>(), planes_of<Half>()},
    {rows_of<float>(), rows_of<double>(), rows_of<BFloat16>(), rows_of<Half>()},
}};
