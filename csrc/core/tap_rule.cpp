#include "core/tap_rule.hpp"

#include <stdexcept>

namespace nsf {

bool TapRule::wants(const StepFacts& facts, std::uint32_t step) const {
    const bool by_number =
        positions.kind == PositionSpec::Kind::list || positions.kind == PositionSpec::Kind::slice;
    if (!facts.known() && (phase != Phase::both || by_number)) {
        throw std::invalid_argument(
            "nothing is known of this forward pass (no token ids among its inputs), so its phase and "
            "positions "
            "cannot be told; run the model itself, or capture both phases and all positions");
    }
    if (phase == Phase::prefill && facts.decode) return false;
    if (phase == Phase::decode && !facts.decode) return false;
    return step % every == 0;
}

bool TapRule::wants_other_steps(const StepFacts& facts) const {
    return every > 1 && !(phase == Phase::prefill && facts.decode) &&
           !(phase == Phase::decode && !facts.decode);
}

}  // namespace nsf
