// For #include <cub/block/block_scan.cuh>.
#pragma once
#include "../../cub.h"
