/* Given to every file that is compiled (-include).
 *
 * GCC before 11.5, 12.4, 13.3 and 14 declares that ldtilecfg reads 8 bytes, though it reads 64: the stores of a tile's
 * rows and columns are dropped as useless, and the processor refuses the first tile (SIGILL). Source: GCC's bug
 * target/114098. With the whole of it named as input, any GCC gets it right.
 */
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(configuration) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(configuration)))
#endif
