// For #include <cub/util_ptx.cuh>.
#pragma once
#include "../cub.h"
