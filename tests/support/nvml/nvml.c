/* NVML's functions as far as the hive asks them, answering from the file that $FAKE_NVML (or STATE, where it was compiled
   with one) names: lines "KEY VALUE".
   A key is "init", "hang" (seconds), "driver" (its version), "count", or of a GPU, "N.NAME"; the value "E15" makes NVML answer error 15.
   "xid.K" with the value "N:CODE" is the K-th event, told once. The file is read anew for each reading. */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef STATE
#define STATE ""
#endif

typedef unsigned long long u64;
enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, MOST_GPUS = 16, MOST_ENTRIES = 1024 };

struct gpu { int index, part; };
struct memory { u64 total, free, used; };
struct utilization { unsigned int gpu, memory; };
struct pci { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char address[32]; };
struct process { unsigned int pid; u64 memory; unsigned int instance, compute_instance; };
struct event { struct gpu *device; u64 type, data; unsigned int instance, compute_instance; };

static struct { char key[48], value[80]; } entries[MOST_ENTRIES];
static int filled;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct gpu gpus[MOST_GPUS], parts[MOST_GPUS * 8];

static void load(void)
{
    const char *path = getenv("FAKE_NVML");
    FILE *file = fopen(path != NULL ? path : STATE, "r");
    if (file == NULL)
        abort();
    pthread_mutex_lock(&lock);
    for (filled = 0; filled < MOST_ENTRIES; filled++)
        if (fscanf(file, "%47s %79s", entries[filled].key, entries[filled].value) != 2)
            break;
    pthread_mutex_unlock(&lock);
    fclose(file);
}

static int text_of(const char *key, char *text, size_t size)
{
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < filled && !found; i++)
        if ((found = strcmp(entries[i].key, key) == 0))
            snprintf(text, size, "%s", entries[i].value);
    pthread_mutex_unlock(&lock);
    return found;
}

static int global(const char *key)
{
    char text[80];
    return text_of(key, text, sizeof text) ? atoi(text) : 0;
}

/* The value of a GPU's key; an error as NVML's, NOT_SUPPORTED where the file has none. */
static int text(const struct gpu *device, const char *name, char *found, size_t size)
{
    char key[64];
    int length = snprintf(key, sizeof key, "%d.", device->index);
    if (device->part >= 0)
        length += snprintf(key + length, sizeof key - length, "mig%d.", device->part);
    snprintf(key + length, sizeof key - length, "%s", name);
    if (!text_of(key, found, size))
        return NOT_SUPPORTED;
    return found[0] == 'E' ? atoi(found + 1) : SUCCESS;
}

static int number(const struct gpu *device, const char *name, u64 *value)
{
    char found[80];
    int code = text(device, name, found, sizeof found);
    if (code == SUCCESS)
        *value = strtoull(found, NULL, 10);
    return code;
}

static int small(const struct gpu *device, const char *name, unsigned int *value)
{
    u64 found = 0;
    int code = number(device, name, &found);
    *value = (unsigned int)found;
    return code;
}

int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    load();
    sleep(global("hang"));
    return global("init");
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "a fault of the test"; }

int nvmlSystemGetDriverVersion(char *found, unsigned int size)
{
    if (!text_of("driver", found, size))
        snprintf(found, size, "580.65.06");
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = 13000;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned int *count)
{
    load();
    if (global("crash"))
        abort();
    sleep(global("hang"));
    *count = (unsigned int)global("count");
    return global("init");
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **device)
{
    u64 lost;
    if (index >= MOST_GPUS || index >= (unsigned int)global("count"))
        return INVALID_ARGUMENT;
    gpus[index] = (struct gpu){(int)index, -1};
    *device = &gpus[index];
    int code = number(*device, "handle", &lost);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetName(struct gpu *device, char *found, unsigned int size) { return text(device, "name", found, size); }
int nvmlDeviceGetUUID(struct gpu *device, char *found, unsigned int size) { return text(device, "uuid", found, size); }

int nvmlDeviceGetPciInfo_v3(struct gpu *device, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    return text(device, "pci", pci->address, sizeof pci->address);
}

int nvmlDeviceGetCudaComputeCapability(struct gpu *device, int *major, int *minor)
{
    unsigned int both;
    int code = small(device, "capability", &both);
    *major = (int)both / 10, *minor = (int)both % 10;
    return code;
}

int nvmlDeviceGetMemoryInfo(struct gpu *device, struct memory *memory)
{
    int code = number(device, "total", &memory->total);
    if (code == SUCCESS)
        code = number(device, "used", &memory->used);
    memory->free = memory->total - memory->used;
    return code;
}

int nvmlDeviceGetUtilizationRates(struct gpu *device, struct utilization *rates)
{
    rates->memory = 7;
    return small(device, "utilization", &rates->gpu);
}

int nvmlDeviceGetTemperature(struct gpu *device, int sensor, unsigned int *celsius)
{
    (void)sensor;
    return small(device, "temperature", celsius);
}

int nvmlDeviceGetTemperatureThreshold(struct gpu *device, int threshold, unsigned int *celsius)
{
    (void)threshold;
    return small(device, "slowdown", celsius);
}

int nvmlDeviceGetPowerUsage(struct gpu *device, unsigned int *watts) { return small(device, "power", watts); }
int nvmlDeviceGetEnforcedPowerLimit(struct gpu *device, unsigned int *watts) { return small(device, "limit", watts); }
int nvmlDeviceGetCurrentClocksEventReasons(struct gpu *device, u64 *bits) { return number(device, "reasons", bits); }

int nvmlDeviceGetClockInfo(struct gpu *device, int clock, unsigned int *megahertz)
{
    return small(device, clock == 2 ? "memory_clock" : "clock", megahertz);
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *device, unsigned int *count, struct process *processes)
{
    unsigned int pid;
    int code = small(device, "process", &pid);
    if (code != SUCCESS || pid == 0 || *count == 0) {
        *count = code == SUCCESS && pid != 0;
        return code == SUCCESS && pid != 0 ? 7 : code;
    }
    *count = 1;
    processes[0] = (struct process){pid, 1 << 30, 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(struct gpu *device, int type, int counter, u64 *count)
{
    static const char *names[2][2] = {{"corrected", "corrected_ever"}, {"uncorrected", "uncorrected_ever"}};
    return number(device, names[type == 1][counter == 1], count);
}

int nvmlDeviceGetRemappedRows(struct gpu *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed)
{
    *corrected = *uncorrected = 0;
    int code = small(device, "remap_pending", pending);
    return code == SUCCESS ? small(device, "remap_failed", failed) : code;
}

int nvmlDeviceGetMigMode(struct gpu *device, unsigned int *current, unsigned int *pending)
{
    int code = small(device, "mig", current);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(struct gpu *device, unsigned int *count)
{
    (void)device;
    *count = 8;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *device, unsigned int index, struct gpu **part)
{
    char found[80];
    *part = &parts[device->index * 8 + index];
    **part = (struct gpu){device->index, (int)index};
    return text(*part, "uuid", found, sizeof found);
}

int nvmlEventSetCreate(void **set)
{
    *set = &lock;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(struct gpu *device, u64 types, void *set)
{
    (void)device, (void)types, (void)set;
    return SUCCESS;
}

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned int milliseconds)
{
    static int told;
    char key[16], found[80];
    int index, code;
    (void)set;
    for (unsigned int waited = 0; waited < milliseconds; waited += 10) {
        snprintf(key, sizeof key, "xid.%d", told);
        if (text_of(key, found, sizeof found) && sscanf(found, "%d:%d", &index, &code) == 2) {
            told++;
            *event = (struct event){&gpus[index], 8, (u64)code, 0, 0};
            return SUCCESS;
        }
        usleep(10000);
    }
    return TIMEOUT;
}
