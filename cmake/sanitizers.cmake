# NSF_SANITIZE=thread or address,undefined: an INTERFACE target that core and tests link.
add_library(nsf_sanitizers INTERFACE)
set(NSF_SANITIZE "" CACHE STRING "Sanitizers for core and C++ tests: thread, or address,undefined")
if(NSF_SANITIZE)
  target_compile_options(nsf_sanitizers INTERFACE -fsanitize=${NSF_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(nsf_sanitizers INTERFACE -fsanitize=${NSF_SANITIZE})
endif()
