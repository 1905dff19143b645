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

# Where LLAMA_ORCH_COMPILE_SOONER is on; the benchmark compares with llama.cpp as upstream compiles it.
# Most of libllama.so reads models and puts their graphs together: optimised less, it compiles faster and answers as fast.
# What runs over each token, each cell of a cache or each word of a vocabulary is optimised as upstream has it.
function(llama_orch_optimise)
    target_compile_options(llama PRIVATE $<$<CONFIG:Release>:-O1>)
    foreach(name IN ITEMS llama-batch llama-context llama-grammar llama-graph llama-kv-cache llama-memory-recurrent
            llama-sampler llama-vocab unicode)
        set_source_files_properties("${CMAKE_CURRENT_SOURCE_DIR}/src/${name}.cpp" TARGET_DIRECTORY llama
            PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O3>)
    endforeach()
endfunction()
if(LLAMA_ORCH_COMPILE_SOONER)
    cmake_language(DEFER CALL llama_orch_optimise)
endif()
