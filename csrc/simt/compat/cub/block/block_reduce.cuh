// For #include <cub/block/block_reduce.cuh>.
#pragma once
#include "../../cub.h"
