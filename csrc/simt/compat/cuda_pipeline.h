// For #include <cuda_pipeline.h>.
#pragma once
#include "libcu.h"
