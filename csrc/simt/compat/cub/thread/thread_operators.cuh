// For #include <cub/thread/thread_operators.cuh>.
#pragma once
#include "../../cub.h"
