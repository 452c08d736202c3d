// A file for each type: they compile side by side.
#define TYPE bf16
#define NAME bf16
#include "epilogue_kernels.inl"
