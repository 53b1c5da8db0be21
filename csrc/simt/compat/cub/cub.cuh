// For #include <cub/cub.cuh>.
#pragma once
#include "../cub.h"
