/* Lets TensorRT's real Python bindings be imported where TensorRT is not installed; computes nothing.
 *
 * The bindings ask their three libraries for these symbols and no others. Every factory gives NULL, which the bindings
 * turn into a TypeError. A fourth part is a CUDA driver with one GPU, as far as a plan's key asks for it.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define NOTHING(name) \
    void *name(void) { return NULL; }

#if defined(NVINFER)
NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry)
#elif defined(PARSER)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
int getNvOnnxParserVersion(void) { return 0; }
#elif defined(PLUGIN)
_Bool initLibNvInferPlugins(void *logger, const char *space) { return logger == NULL || space != NULL; }
#elif defined(DRIVER)
int cuInit(unsigned flags) { return getenv("FAKE_NO_GPU") ? 100 : (int)flags; }
int cuDriverGetVersion(int *version) { return *version = 12060, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, 0; }
int cuDeviceGetName(char *name, int length, int device) {
    const char *gpu = getenv("FAKE_GPU");
    strncpy(name, gpu ? gpu : "Orin", (size_t)length - 1);
    return device;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 16 ? 8 : attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return device;
}
#endif
