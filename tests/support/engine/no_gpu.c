/* A CUDA backend as it is on a machine whose driver shows no GPU: it can be loaded, and has no device. */
#include "ggml-backend-impl.h"

static const char *name(ggml_backend_reg_t backend) {
    (void)backend;
    return "CUDA";
}

static size_t devices(ggml_backend_reg_t backend) {
    (void)backend;
    return 0;
}

ggml_backend_reg_t ggml_backend_init(void) {
    static struct ggml_backend_reg backend = {
        .api_version = GGML_BACKEND_API_VERSION,
        .iface = {.get_name = name, .get_device_count = devices},
    };
    return &backend;
}
