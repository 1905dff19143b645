/* A CPU library that says it is the best there is, and dies of an instruction that no processor has. */
int ggml_backend_score(void) {
    return 1 << 20;
}

void *ggml_backend_init(void) {
    __builtin_trap();
}
