/* NVML's functions as far as the hive asks them, answering from the file that $FAKE_NVML names:
   one line "INIT ERROR HANG COUNT", then one line "TOTAL USED" for each GPU. */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, MAX_GPUS = 16 };

struct gpu { unsigned long long total, used; };
struct memory { unsigned long long total, free, used; };
struct utilization { unsigned int gpu, memory; };

static struct { int init, error, hang, count; struct gpu gpus[MAX_GPUS]; } state;

static void load(void)
{
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    if (file == NULL || fscanf(file, "%d %d %d %d", &state.init, &state.error, &state.hang, &state.count) != 4)
        abort();
    for (int i = 0; i < state.count && i < MAX_GPUS; i++)
        if (fscanf(file, "%llu %llu", &state.gpus[i].total, &state.gpus[i].used) != 2)
            abort();
    fclose(file);
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    load();
    sleep(state.hang);
    return state.init;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "a fault of the test"; }

int nvmlSystemGetDriverVersion(char *text, unsigned int size)
{
    snprintf(text, size, "580.65.06");
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = 13000;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    *count = (unsigned int)state.count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **device)
{
    if (index >= (unsigned int)state.count)
        return INVALID_ARGUMENT;
    *device = &state.gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetName(struct gpu *device, char *text, unsigned int size)
{
    (void)device;
    snprintf(text, size, "Test GPU");
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *device, char *text, unsigned int size)
{
    snprintf(text, size, "GPU-%d", (int)(device - state.gpus));
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(struct gpu *device, struct memory *memory)
{
    if (device->total == 0)
        return state.error;
    *memory = (struct memory){device->total, device->total - device->used, device->used};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct gpu *device, struct utilization *rates)
{
    (void)device;
    *rates = (struct utilization){42, 7};
    return state.error;
}

int nvmlDeviceGetTemperature(struct gpu *device, int sensor, unsigned int *celsius)
{
    (void)device;
    (void)sensor;
    *celsius = 61;
    return state.error;
}

int nvmlDeviceGetPowerUsage(struct gpu *device, unsigned int *milliwatts)
{
    (void)device;
    *milliwatts = 123456;
    return state.error;
}
