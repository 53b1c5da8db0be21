// See cublas_v2.h; products of the cublasLt interface are not declared.
#pragma once
#include "cublas_v2.h"
