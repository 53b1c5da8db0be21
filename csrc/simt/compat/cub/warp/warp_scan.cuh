// For #include <cub/warp/warp_scan.cuh>.
#pragma once
#include "../../cub.h"
