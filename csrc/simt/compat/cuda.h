// Programs include this for a macro or two. The driver's interface (cuInit, cuModuleLoad, ...) is not supported.
#pragma once
#include "cuda_runtime.h"
