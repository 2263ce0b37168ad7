# find_package(luo) gives the targets luo::luo (the client library) and luo::plugin (headers for handlers that luod
# loads; they need fmt's).
include("${CMAKE_CURRENT_LIST_DIR}/luo-targets.cmake")
set(luo_plugin_FOUND TRUE)
set(luo_luo_FOUND TRUE)
if("plugin" IN_LIST luo_FIND_COMPONENTS)
  include(CMakeFindDependencyMacro)
  find_dependency(fmt)
  get_target_property(_luo_fmt fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
  if(_luo_fmt)
    set_property(TARGET luo::plugin APPEND PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${_luo_fmt}")
  endif()
  unset(_luo_fmt)
endif()
