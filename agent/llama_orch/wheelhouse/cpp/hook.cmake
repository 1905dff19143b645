# Read by llama.cpp's project() (CMAKE_PROJECT_llama.cpp_INCLUDE).
#
# ggml names each processor's library as a dependency of its own, so that `ninja llama` compiles all of them. They are
# loaded at run time and none is needed to link: each is asked for by name instead.
function(add_dependencies target)
    if(NOT target STREQUAL "ggml")
        _add_dependencies(${target} ${ARGN})
    endif()
endfunction()

# What libllama.so would else ask a newer C library for; the target exists when all of the project has been read.
set(LLAMA_ORCH_CPP "${CMAKE_CURRENT_LIST_DIR}")
cmake_language(DEFER CALL target_sources llama PRIVATE "${LLAMA_ORCH_CPP}/arc4random.c")
