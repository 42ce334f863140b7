#include "textflag.h"

// func call(entry, handle, args, reply uintptr) uint32
// The gate needs little of the caller's stack, but more than a goroutine is promised without asking.
TEXT ·call(SB), 0, $8192-40
	MOVQ entry+0(FP), AX
	MOVQ handle+8(FP), DI
	MOVQ args+16(FP), SI
	MOVQ reply+24(FP), DX
	MOVQ SP, BX
	ANDQ $~15, SP
	CALL AX
	MOVQ BX, SP
	MOVL AX, ret+32(FP)
	RET

// func find2(entry, name, len uintptr) uintptr
TEXT ·find2(SB), 0, $8192-32
	MOVQ entry+0(FP), AX
	MOVQ name+8(FP), DI
	MOVQ len+16(FP), SI
	MOVQ SP, BX
	ANDQ $~15, SP
	CALL AX
	MOVQ BX, SP
	MOVQ AX, ret+24(FP)
	RET
