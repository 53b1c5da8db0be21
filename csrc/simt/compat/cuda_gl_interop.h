// Some programs include this and use nothing of it. OpenGL is not supported: what it declares elsewhere is not declared.
#pragma once
