// nvcuda::wmma.
#pragma once
#include "cuda_runtime.h"
#include "../wmma.h"
