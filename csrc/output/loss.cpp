#include "output/loss.hpp"

#include "base/check.hpp"
#include "base/parallel.hpp"
#include "linalg/dense.hpp"

namespace natgrad {
namespace {

template <class Law>
Law with_parameters(Law law, const Loss::Parameters& parameters) {
  std::size_t known = 0;
  law.each_parameter([&](std::string_view name, double& value) {
    const auto found = parameters.find(name);
    check(found != parameters.end(), "loss '", Law::name, "' needs a value of '", name, "'");
    value = found->second;
    ++known;
  });
  check(known == parameters.size(),
        "loss '",
        Law::name,
        "' has ",
        known,
        " parameters, got ",
        parameters.size());
  return law;
}

// f(default value) for every loss.
template <class F, class... Laws>
void each_loss(const std::variant<Laws...>*, F f) {
  (f(Laws{}), ...);
}

}  // namespace

Loss::Loss(std::string_view name, const Parameters& parameters) {
  bool found = false;
  each_loss(&any_, [&](auto law) {
    if (law.name != name) return;
    any_ = with_parameters(law, parameters);
    found = true;
  });
  check(found, "unknown loss '", name, "'");
}

std::vector<std::string_view> Loss::names() {
  std::vector<std::string_view> names;
  each_loss(static_cast<const Any*>(nullptr), [&](auto law) { names.push_back(law.name); });
  return names;
}

Index Loss::num_targets(Index num_outputs) const {
  return visit([=](const auto& law) { return law.num_targets(num_outputs); });
}

bool Loss::hessian_needs_targets() const {
  return visit([](const auto& law) { return law.hessian_needs_targets; });
}

template <class T>
void loss_values(const Loss& loss, PanelView<const T> z, PanelView<const T> y, double* values) {
  loss.visit([=](const auto& law) {
    for (Index j = 0; j < z.count; ++j) {
      LaneArray<T, double> sums;
      law.template values<T>(array(z, j), array(y, j), sums);
      LaneMap<T>(values + j * Tile<T>::width) = sums;
    }
  });
}

template <class T>
void loss_gradient(const Loss& loss, PanelView<const T> z, PanelView<const T> y, PanelView<T> g) {
  loss.visit([=](const auto& law) {
    for (Index j = 0; j < z.count; ++j)
      law.template gradient<T>(array(z, j), array(y, j), array(g, j));
  });
}

template <class T>
void predictive_mean(
    const Loss& loss, const T* z, Index num_cases, Index num_outputs, int num_threads, T* mean) {
  constexpr Index width = Tile<T>::width;
  const Index num_targets = loss.num_targets(num_outputs);
  const Index num_panels = Panels<T>::count_for(num_cases);
  // Panels that one task packs, so that small ones are not all there is to do.
  constexpr Index panels_per_task = 32;
  const Index num_tasks = (num_panels + panels_per_task - 1) / panels_per_task;
  parallel_for(num_tasks, num_threads, [&](Index task, int) {
    const Index first = task * panels_per_task;
    const Index count = std::min(panels_per_task, num_panels - first), row = first * width;
    Panels<T> outputs(num_outputs, count * width), means(num_targets, count * width);
    pack_cases(z + row * num_outputs,
               num_cases - row,
               num_outputs,
               0,
               count,
               Fill::last_case,
               outputs.view());
    loss.visit([&](const auto& law) {
      for (Index j = 0; j < count; ++j)
        law.template mean<T>(array(PanelView<const T>(outputs.view()), j), array(means.view(), j));
    });
    unpack_cases<T>(means.view(), num_cases - row, mean + row * num_targets);
  });
}

#define NATGRAD_INSTANTIATE(T)                                                                    \
  template void loss_values(const Loss&, PanelView<const T>, PanelView<const T>, double*);        \
  template void loss_gradient(const Loss&, PanelView<const T>, PanelView<const T>, PanelView<T>); \
  template void predictive_mean(const Loss&, const T*, Index, Index, int, T*);
NATGRAD_INSTANTIATE(float)
NATGRAD_INSTANTIATE(double)

}  // namespace natgrad
