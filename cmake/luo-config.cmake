# find_package(luo) gives the target luo::luo.
include("${CMAKE_CURRENT_LIST_DIR}/luo-targets.cmake")
