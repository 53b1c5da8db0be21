// cuBLAS as programs expect to find it: a handle can be made, and a product is named as unsupported when it is asked for.
#pragma once
#include "cuda_runtime.h"
#define CUBLAS_API_H_  // programs ask for it before they give cublasStatus_t its own error texts

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_INITIALIZED, CUBLAS_STATUS_ALLOC_FAILED = 3,
                      CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_ARCH_MISMATCH, CUBLAS_STATUS_MAPPING_ERROR = 11,
                      CUBLAS_STATUS_EXECUTION_FAILED = 13, CUBLAS_STATUS_INTERNAL_ERROR, CUBLAS_STATUS_NOT_SUPPORTED,
                      CUBLAS_STATUS_LICENSE_ERROR };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C };
enum cublasMath_t { CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH, CUBLAS_PEDANTIC_MATH, CUBLAS_TF32_TENSOR_OP_MATH };
enum cublasComputeType_t { CUBLAS_COMPUTE_16F = 64, CUBLAS_COMPUTE_32F = 68, CUBLAS_COMPUTE_32F_FAST_16F = 74,
                           CUBLAS_COMPUTE_32F_FAST_16BF = 75, CUBLAS_COMPUTE_32F_FAST_TF32 = 77, CUBLAS_COMPUTE_64F = 70 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1, CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99 };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 14 };
using cudaDataType = cudaDataType_t;
using cublasHandle_t = struct SimtBlas*;
using cublasLtHandle_t = struct SimtBlasLt*;

inline cublasStatus_t cublasCreate(cublasHandle_t* handle) { return *handle = nullptr, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return *handle = nullptr, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }

#define SIMT_NO_BLAS(name) (::simt::program::unsupported("cuBLAS (" name ")", ::simt::Where::here()), CUBLAS_STATUS_SUCCESS)
#define cublasSgemm(...) SIMT_NO_BLAS("cublasSgemm")
#define cublasDgemm(...) SIMT_NO_BLAS("cublasDgemm")
#define cublasHgemm(...) SIMT_NO_BLAS("cublasHgemm")
#define cublasSgemv(...) SIMT_NO_BLAS("cublasSgemv")
#define cublasSaxpy(...) SIMT_NO_BLAS("cublasSaxpy")
#define cublasSdot(...) SIMT_NO_BLAS("cublasSdot")
#define cublasGemmEx(...) SIMT_NO_BLAS("cublasGemmEx")
#define cublasSgemmStridedBatched(...) SIMT_NO_BLAS("cublasSgemmStridedBatched")
#define cublasGemmStridedBatchedEx(...) SIMT_NO_BLAS("cublasGemmStridedBatchedEx")
