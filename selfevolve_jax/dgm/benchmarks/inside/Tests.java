import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.platform.engine.TestExecutionResult;
import org.junit.platform.engine.discovery.DiscoverySelectors;
import org.junit.platform.launcher.LauncherDiscoveryRequest;
import org.junit.platform.launcher.TestExecutionListener;
import org.junit.platform.launcher.TestIdentifier;
import org.junit.platform.launcher.TestPlan;
import org.junit.platform.launcher.core.LauncherDiscoveryRequestBuilder;
import org.junit.platform.launcher.core.LauncherFactory;

/** Runs the test classes args[1..] and writes a line of JSON for each test to the file args[0]. */
class Tests {
  public static void main(String[] args) throws Exception {
    try (PrintStream report = new PrintStream(Files.newOutputStream(Path.of(args[0])), true)) {
      LauncherDiscoveryRequestBuilder request = LauncherDiscoveryRequestBuilder.request();
      for (int i = 1; i < args.length; i++) {
        request.selectors(DiscoverySelectors.selectClass(args[i]));
      }
      TestExecutionListener listener = new TestExecutionListener() {
        private TestPlan plan;

        @Override
        public void testPlanExecutionStarted(TestPlan testPlan) {
          plan = testPlan;
        }

        @Override
        public void executionFinished(TestIdentifier test, TestExecutionResult result) {
          if (!test.isTest()) {
            return;
          }
          String parent = plan.getParent(test).map(TestIdentifier::getLegacyReportingName).orElse("");
          String name = parent + "." + test.getLegacyReportingName();
          boolean passed = result.getStatus() == TestExecutionResult.Status.SUCCESSFUL;
          report.println("{\"test\": \"" + escaped(name) + "\", \"passed\": " + passed + "}");
        }
      };
      LauncherDiscoveryRequest built = request.build();
      LauncherFactory.create().execute(built, listener);
    }
    System.exit(0);
  }

  private static String escaped(String text) {
    StringBuilder out = new StringBuilder();
    for (char c : text.toCharArray()) {
      out.append(c == '"' || c == '\\' || c < 32 ? String.format("\\u%04x", (int) c) : c);
    }
    return out.toString();
  }
}
