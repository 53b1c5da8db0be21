// For #include <cub/warp/warp_reduce.cuh>.
#pragma once
#include "../../cub.h"
