// Lets this process use AMX where the CPU has none: SIGILL is answered by doing what Intel's manual (volume 2) says of
// the instruction. What a CPU with AMX would refuse ends the process.

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };
enum { NONE, X66, XF3, XF2 }; // the VEX prefix's field pp
enum { CONFIGURE = 0x49, MOVE = 0x4B, MULTIPLY = 0x5E };

typedef struct {
    uint16_t bytes;
    uint8_t rows, data[ROWS][BYTES];
} Tile;

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Shapes;

static _Thread_local Tile tiles[TILES];
static struct sigaction before;
static long products; // tdp.. instructions done

long amx_products(void) { return __atomic_load_n(&products, __ATOMIC_SEQ_CST); }

static void require(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "AMX: %s\n", what);
    abort();
}

static Tile *used(int number) {
    require(number < TILES && tiles[number].rows, "a tile register without a shape is used");
    return &tiles[number];
}

static void clear(Tile *tile) { memset(tile->data, 0, sizeof tile->data); }

static void configure(const Shapes *shapes) {
    memset(tiles, 0, sizeof tiles);
    require(shapes->palette == 1 && shapes->start == 0, "palette 1 from row 0 is all that is known here");
    for (int i = 0; i < 14; i++) require(!shapes->reserved[i], "a reserved byte of the palette is not 0");
    for (int i = 0; i < 16; i++) {
        int rows = shapes->rows[i], bytes = shapes->bytes[i];
        require(!rows == !bytes && rows <= ROWS && bytes <= BYTES, "a tile register has an impossible shape");
        require(!rows || i < TILES, "there are 8 tile registers");
        if (i < TILES) tiles[i] = (Tile){.rows = rows, .bytes = bytes};
    }
}

static void load(Tile *tile, const char *from, int64_t stride) {
    clear(tile);
    for (int r = 0; r < tile->rows; r++) memcpy(tile->data[r], from + r * stride, tile->bytes);
}

static void store(const Tile *tile, char *to, int64_t stride) {
    for (int r = 0; r < tile->rows; r++) memcpy(to + r * stride, tile->data[r], tile->bytes);
}

static int element(uint8_t byte, int is_signed) { return is_signed ? (int8_t)byte : byte; }

static void multiply(Tile *sums, const Tile *a, const Tile *b, int a_signed, int b_signed) {
    require(sums != a && sums != b && a != b, "a product needs three different tile registers");
    require(sums->bytes % 4 == 0 && a->bytes % 4 == 0 && b->bytes % 4 == 0, "rows are not multiples of 4 bytes");
    require(sums->rows == a->rows && sums->bytes == b->bytes && a->bytes == 4 * b->rows, "shapes do not fit");
    for (int m = 0; m < sums->rows; m++)
        for (int n = 0; n < sums->bytes / 4; n++) {
            uint32_t sum;
            memcpy(&sum, &sums->data[m][4 * n], 4);
            for (int k = 0; k < a->bytes; k++)
                sum += element(a->data[m][k], a_signed) * element(b->data[k / 4][4 * n + k % 4], b_signed);
            memcpy(&sums->data[m][4 * n], &sum, 4);
        }
    for (int m = sums->rows; m < ROWS; m++) memset(sums->data[m], 0, BYTES);
    __atomic_fetch_add(&products, 1, __ATOMIC_SEQ_CST);
}

typedef struct {
    const uint8_t *end; // of the instruction
    char *base;         // with the displacement
    int64_t index;      // scaled
} Address;

// The memory operand that begins with the byte `modrm`; `x` and `b` are the fourth bits of index and base.
static Address address(const uint8_t *modrm, int x, int b, const greg_t *registers) {
    static const int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    int mode = *modrm >> 6, base = *modrm & 7;
    Address found = {.end = modrm + 1};
    if (base == 4) {
        int sib = *found.end++, index = (sib >> 3 & 7) | x << 3;
        base = sib & 7;
        if (index != 4) found.index = registers[order[index]] << (sib >> 6);
    }
    require(mode != 0 || base != 5, "an address without a base register is not known here");
    int64_t displacement = 0;
    if (mode == 1) displacement = (int8_t)*found.end++;
    if (mode == 2) {
        int32_t four;
        memcpy(&four, found.end, 4);
        displacement = four;
        found.end += 4;
    }
    found.base = (char *)registers[order[base | b << 3]] + displacement;
    return found;
}

// The end of the instruction at `code`, which is done; NULL for one that is none of AMX.
static const uint8_t *run(const uint8_t *code, const greg_t *registers) {
    if (code[0] != 0xC4 || (code[1] & 31) != 2 || code[2] & 0x84) return NULL; // VEX.128.0F38.W0
    int prefix = code[2] & 3, third = ~code[2] >> 3 & 15, operation = code[3], modrm = code[4];
    int in_registers = modrm >> 6 == 3, reg = (modrm >> 3 & 7) | (~code[1] >> 7 & 1) << 3;
    if (operation == MULTIPLY && in_registers) {
        int a_signed = prefix == XF2 || prefix == XF3, b_signed = prefix == XF2 || prefix == X66;
        multiply(used(reg), used((modrm & 7) | (~code[1] >> 5 & 1) << 3), used(third), a_signed, b_signed);
        return code + 5;
    }
    if (operation == CONFIGURE && in_registers) {
        if (prefix == NONE) memset(tiles, 0, sizeof tiles);
        else if (prefix == XF2) clear(used(reg));
        else return NULL;
        return code + 5;
    }
    if (in_registers || (operation != CONFIGURE && operation != MOVE)) return NULL;
    Address at = address(code + 4, ~code[1] >> 6 & 1, ~code[1] >> 5 & 1, registers);
    if (operation == CONFIGURE && prefix == NONE) configure((const Shapes *)(at.base + at.index));
    else if (operation == MOVE && prefix == XF3) store(used(reg), at.base, at.index);
    else if (operation == MOVE && prefix != NONE) load(used(reg), at.base, at.index);
    else return NULL;
    return at.end;
}

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *end = run((const uint8_t *)registers[REG_RIP], registers);
    (void)number, (void)info;
    if (end) registers[REG_RIP] = (greg_t)end;
    else sigaction(SIGILL, &before, NULL); // it comes again, to whoever was there before
}

int amx_begin(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    return sigaction(SIGILL, &action, &before);
}
