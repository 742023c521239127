// Runs the walker of compiled kernels where there is no Python: stands in for TVM's run-time library.
//
// driver FILE BASE THREADS OPS TABLE WORDS SIZES SLOTS SYNC WORDS: maps FILE, shared, at the address BASE and walks the
// first OPS rows of the table in it. TABLE, SIZES and SYNC are offsets into the file, each with its number of elements.

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <tvm/ffi/c_api.h>

enum { MAX_THREADS = 64 };

typedef struct {
    void *sync_handle;
    int32_t num_task;
} Group;

typedef int (*Lambda)(int task, Group *group, void *data);

typedef struct {
    Lambda lambda;
    Group *group;
    void *data;
    int task;
} Part;

int __tvm_ffi_mlc_run(void *self, const TVMFFIAny *arguments, int32_t count, TVMFFIAny *result);

static _Noreturn void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *run_part(void *argument) {
    Part *part = argument;
    if (part->lambda(part->task, part->group, part->data)) exit(1);
    return NULL;
}

static int threads;

static int launch(Lambda lambda, void *data, int asked) {
    (void)asked; // 0: as many as there are
    Group group = {.num_task = threads};
    Part parts[MAX_THREADS];
    pthread_t handles[MAX_THREADS];
    for (int i = 0; i < threads; i++) {
        parts[i] = (Part){lambda, &group, data, i};
        if (i && pthread_create(&handles[i], NULL, run_part, &parts[i])) fail("pthread_create");
    }
    run_part(&parts[0]);
    for (int i = 1; i < threads; i++) pthread_join(handles[i], NULL);
    return 0;
}

int (*__TVMBackendParallelLaunch)(Lambda, void *, int) = launch;

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    fprintf(stderr, "%s: ", kind);
    for (int i = 0; i < count; i++) fputs(parts[i] ? parts[i] : "", stderr);
}

int main(int count, char **words) {
    if (count != 11) return 2;
    long long n[11];
    for (int i = 2; i < 11; i++) n[i] = strtoll(words[i], NULL, 0);
    int file = open(words[1], O_RDWR);
    struct stat status;
    if (file < 0 || fstat(file, &status)) fail(words[1]);
    char *base = mmap((void *)n[2], status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    if (base == MAP_FAILED) fail("mmap");

    DLTensor tensors[3];
    TVMFFIAny arguments[6] = {0}, result = {0};
    for (int i = 0; i < 3; i++) {
        tensors[i] = (DLTensor){
            .data = base + n[5 + 2 * i],
            .device = {kDLCPU, 0},
            .ndim = 1,
            .dtype = {kDLInt, i ? 32 : 64, 1},
            .shape = (int64_t *)&n[6 + 2 * i],
        };
        arguments[i] = (TVMFFIAny){.type_index = kTVMFFIDLTensorPtr, .v_ptr = &tensors[i]};
    }
    threads = (int)n[3];
    const long long scalars[3] = {0, n[4], threads}; // first, last, threads
    for (int i = 0; i < 3; i++) arguments[3 + i] = (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = scalars[i]};
    return __tvm_ffi_mlc_run(NULL, arguments, 6, &result) ? 1 : 0;
}
