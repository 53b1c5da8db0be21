// printf() of kernels: what it takes, what it returns, and when its output is seen.
#include <cstdio>
#include <cstdlib>

__global__ void forms(int *returned) {
  const char *word = "word";
  returned[0] = printf("%d|%5.2f|%c|%s|%%|%-4u|%+ld|%llx|%*d\n", -3, 2.5, 'x', word, 7u, 8l, 255ull, 4, 9);
  returned[1] = printf("nothing\n");
  returned[2] = printf(nullptr);
  returned[3] = printf("%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d %d%s%%\n", 1, 2, 3, 4, 5, 6, 7, 8, 9,
                       1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, "no");
}

__global__ void numbers(int count) {
  for (int i = 0; i < count; ++i) printf("%d ", i);
}

int main(int argc, char **argv) {
  int *returned;
  cudaMallocManaged(&returned, 64);
  const int which = argc > 1 ? atoi(argv[1]) : 0;
  if (which == 0) {
    forms<<<1, 1>>>(returned);
    printf("the host goes on\n");
    numbers<<<1, 1>>>(2);
    printf("and on\n");
    cudaDeviceSynchronize();
    printf("\n%d %d %d %d %d\n", returned[0], returned[1], returned[2], returned[3], printf("four"));
  } else if (which == 1) {  // 24 bytes of the buffer for each
    cudaDeviceSetLimit(cudaLimitPrintfFifoSize, 100);
    numbers<<<1, 1>>>(10);
    cudaDeviceSynchronize();
  } else {
    numbers<<<1, 1>>>(3);
  }
}
