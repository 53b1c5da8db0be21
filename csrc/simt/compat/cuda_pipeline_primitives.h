// For #include <cuda_pipeline_primitives.h>.
#pragma once
#include "libcu.h"
