/* Prints the sizes of the structures that llama.cpp takes and gives by value, as JSON: a binding that was made for
 * another version would pass them shifted, and corrupt memory without a word. */
#include "llama.h"
#include <stdio.h>

#define SIZE(name, end) printf("\"" #name "\": %zu" end, sizeof(struct name))

int main(void) {
    printf("{");
    SIZE(llama_model_params, ", ");
    SIZE(llama_context_params, ", ");
    SIZE(llama_sampler_chain_params, ", ");
    SIZE(llama_batch, "}\n");
    return 0;
}
