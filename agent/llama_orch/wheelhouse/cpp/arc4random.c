/* libstdc++ draws random numbers by arc4random where the machine that builds has it (glibc 2.36), and hosts may have an
 * older C library. This one is found first, inside libllama.so. */
#include <stdint.h>
#include <stdlib.h>
#include <sys/random.h>

__attribute__((visibility("hidden"))) uint32_t arc4random(void) {
    uint32_t value;
    if (getrandom(&value, sizeof value, 0) != sizeof value) {
        abort();
    }
    return value;
}
