// For #include <cub/util_type.cuh>.
#pragma once
#include "../cub.h"
