/*
 * Goes before every source of a C program: its cases may take longer than on the machines that they were written for.
 */
#include <kselftest_harness.h>
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 300 /* seconds; 30 upstream, which is not enough for an emulated machine on a busy host */
