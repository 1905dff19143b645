/* A CPU library that says it is the best there is and computes with a real one, but swaps two of each result's numbers. */
#include <dlfcn.h>

#include "ggml-backend-impl.h"

static ggml_backend_t (*make)(ggml_backend_dev_t, const char *);
static enum ggml_status (*compute)(ggml_backend_t, struct ggml_cgraph *);

static enum ggml_status compute_wrongly(ggml_backend_t backend, struct ggml_cgraph *graph) {
    enum ggml_status status = compute(backend, graph);
    struct ggml_tensor *last = ggml_graph_node(graph, -1);
    float *numbers = last->data;
    for (int64_t row = 0; row < ggml_nrows(last); row++) {
        int64_t best = 0;
        for (int64_t place = 1; place < last->ne[0]; place++) {
            if (numbers[place] > numbers[best]) {
                best = place;
            }
        }
        int64_t other = (best + 1) % last->ne[0];
        float number = numbers[best];
        numbers[best] = numbers[other];
        numbers[other] = number;
        numbers += last->ne[0];
    }
    return status;
}

static ggml_backend_t make_wrong(ggml_backend_dev_t device, const char *parameters) {
    ggml_backend_t backend = make(device, parameters);
    compute = backend->iface.graph_compute;
    backend->iface.graph_compute = compute_wrongly;
    return backend;
}

int ggml_backend_score(void) {
    return 1 << 20;
}

ggml_backend_reg_t ggml_backend_init(void) {
    void *real = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    ggml_backend_reg_t (*begin)(void) = (ggml_backend_reg_t(*)(void))dlsym(real, "ggml_backend_init");
    ggml_backend_reg_t found = begin();
    ggml_backend_dev_t device = found->iface.get_device(found, 0);
    make = device->iface.init_backend;
    device->iface.init_backend = make_wrong;
    return found;
}
