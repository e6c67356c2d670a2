# Strict warnings as an INTERFACE target: a target asks for them, nothing is set globally.
add_library(nsf_warnings INTERFACE)
option(NSF_WERROR "Treat warnings as errors" OFF)
target_compile_options(nsf_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-align
  $<$<BOOL:${NSF_WERROR}>:-Werror>)
