# What every target of the project shares: warnings, sanitizers, and the two helpers that make
# a folder a library and its *_test.cc files a test program.
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(SYSTEMD REQUIRED IMPORTED_TARGET libsystemd)
if(LUO_TESTS)
  find_package(GTest REQUIRED)
  include(GoogleTest)
  set(CMAKE_GTEST_DISCOVER_TESTS_DISCOVERY_MODE PRE_TEST)
endif()

add_library(luo_flags INTERFACE)
target_compile_options(luo_flags INTERFACE -Wall -Wextra -Wconversion -Wshadow
  $<$<BOOL:${LUO_WERROR}>:-Werror> -fno-omit-frame-pointer)
target_compile_definitions(luo_flags INTERFACE _GNU_SOURCE)
target_include_directories(luo_flags INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
if(LUO_SANITIZE)
  add_compile_options(-fsanitize=${LUO_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${LUO_SANITIZE})
  if(LUO_SANITIZE MATCHES undefined)
    # That check makes a pipe to find out whether an object can be read, and takes a full descriptor table,
    # which is what some tests are about, for a broken object.
    add_compile_options(-fno-sanitize=vptr)
  endif()
endif()

# luo_library(NAME SOURCES... DEPS targets...): a static library luo_NAME that may use only DEPS.
# Sources named *_test.cc become the test program luo_NAME_test.
function(luo_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  set(tests ${ARG_SOURCES})
  list(FILTER tests INCLUDE REGEX "_test\\.cc$")
  list(FILTER ARG_SOURCES EXCLUDE REGEX "_test\\.cc$")
  add_library(luo_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(luo_${name} PUBLIC ${ARG_DEPS} PRIVATE luo_flags)
  target_include_directories(luo_${name} PUBLIC ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include)
  target_compile_definitions(luo_${name} PUBLIC _GNU_SOURCE)
  if(tests AND LUO_TESTS)
    luo_test(luo_${name}_test SOURCES ${tests} DEPS luo_${name})
  endif()
endfunction()

# luo_test(NAME SOURCES... DEPS... [LABEL unit|integration|crash]): a GoogleTest program, one ctest
# test for each TEST in it. ctest -L LABEL selects.
function(luo_test name)
  cmake_parse_arguments(ARG "SERIAL" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} luo_flags GTest::gtest GTest::gmock GTest::gtest_main)
  set(props LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
  if(ARG_SERIAL)
    list(APPEND props RUN_SERIAL TRUE)
  endif()
  gtest_discover_tests(${name} PROPERTIES ${props})
endfunction()
